"""Feed-forward layers with fetched memories: the bank as a supernet, what a path trains, and what ties it to MLP."""

from __future__ import annotations

from dataclasses import replace

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.memory_mlp import MemoryMLP
from bodyplan.testing import built
from exported_folders import assert_equal_to_the_module, export_all, judged

torch.set_num_threads(1)
LEVELS = (2, 3)


def bank():
    path = bp.tied(bp.choice(*bp.memory_paths(LEVELS)))
    layer = bp.Block(mixer=bp.ShortConv(), channel=bp.MemoryMLP(ratio=1, levels=LEVELS, block=(8, 4), path=path))
    return bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, body=(layer, layer), head=bp.LanguageHead(tied=False))


def test_without_levels_it_is_mlp_bit_for_bit():
    plain, module = built(bp.MLP(ratio=2), 16), built(bp.MemoryMLP(ratio=2, levels=(), path=()), 16)
    module.load_state_dict({f"feed_forward.{name}": value for name, value in plain.state_dict().items()})
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), plain(x))


def test_fetched_blocks_are_more_hidden_units_of_one_layer():
    module, wide = built(bp.MemoryMLP(ratio=1, block=8), 16, dtype=torch.float64), built(bp.MLP(2), 16, dtype=torch.float64)
    parts = [module.feed_forward, *module.fetched]
    with torch.no_grad():
        wide.up.weight.copy_(torch.cat([part.up.weight for part in parts]))
        wide.down.weight.copy_(torch.cat([part.down.weight for part in parts], 1))
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(module(x), wide(x))


def test_paths_are_those_of_the_tree_and_one_serves_all_layers():
    assert bp.memory_paths(LEVELS) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    space = bank()
    assert space.size() == 6
    for genome in space.enumerate():
        architecture = space.architecture(genome)
        assert len({layer.channel.path for layer in architecture.plan.layers}) == 1


def test_a_path_holds_its_blocks_and_the_bank_holds_all():
    space = bank()
    net = bp.Supernet(space, seed=0)
    architectures = [space.architecture(genome) for genome in space.enumerate()]
    sizes = {architecture.cost().parameters for architecture in architectures}
    without = 2 * 2 * 16 * 16
    assert len(sizes) == 1
    resident, whole = sizes.pop(), sum(p.numel() for p in net.parameters())
    assert whole - resident == 2 * 2 * 16 * ((2 - 1) * 8 + (6 - 1) * 4) and resident > without
    models = {layer.plan.layers[0].channel.path: net.extract(layer) for layer in architectures}
    up = {path: [block.up.weight for block in model.layers[0].channel.op.fetched] for path, model in models.items()}
    assert torch.equal(up[0, 0][0], up[0, 2][0]) and not torch.equal(up[0, 0][0], up[1, 0][0])
    assert len({leaf.sum().item() for _, leaf in up.values()}) == 6


def test_a_text_trains_the_blocks_of_its_path_alone():
    space = bank()
    net = bp.Supernet(space, seed=0)
    genomes = list(space.enumerate())
    before = {path: {name: value.clone() for name, value in net.extract(path).state_dict().items()}
              for path in map(space.architecture, genomes)}
    ids = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
    trained = next(a for a in before if a.plan.layers[0].channel.path == (1, 1))
    net.subnet(trained)(ids).square().mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    for architecture, weights in before.items():
        path = architecture.plan.layers[0].channel.path
        for name, value in net.extract(architecture).state_dict().items():
            if "fetched" in name:
                level = int(name.split("fetched.")[1][0])
                assert torch.equal(value, weights[name]) == (path[:level + 1] != (1, 1)[:level + 1]), (path, name)


def test_an_exported_folder_holds_one_path(tmp_path):
    architecture = bank().sample(3)
    root = export_all(tmp_path, {"fetched": architecture})
    assert_equal_to_the_module(judged(root, ["fetched"])["fetched"], root, "fetched")


@pytest.mark.parametrize(("fields", "text"), [
    ({"path": (4, 0)}, "path names a child"), ({"path": (0,)}, "path names a child"),
    ({"levels": (0, 4)}, "levels are numbers"), ({"levels": 4}, "levels are numbers"),
    ({"block": (8,)}, "block is one number"), ({"block": 0}, "block must be"),
    ({"activation": "tanh"}, "unknown activation"), ({"ratio": 0}, "ratio must be")])
def test_numbers_that_cannot_be_built_are_named(fields, text):
    with pytest.raises(ValueError, match=f"{text}.*here"):
        replace(MemoryMLP(), **fields).check(16, "here")
