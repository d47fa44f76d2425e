"""Reversible residual layers: the function, its gradients without remembered activations, decoding."""

from __future__ import annotations

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.residual_layers import Units
from bodyplan.space.macros.reversible_layers import ReversibleLayers

torch.set_num_threads(1)

MIXER = bp.choice(bp.Attention(heads=2), bp.ShortConv(kernel=3))
BLOCK = bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=1))


def space(body):
    return bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, body=body, head=bp.LanguageHead(tied=True))


def model(depth, body=BLOCK):
    return space(bp.Stack((body,) * depth, bp.Reversible())).sample(0).build()


def ids(length, seed=0):
    return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(seed))


def stack_of(built):
    return next(m for m in built.modules() if isinstance(m, ReversibleLayers))


def test_two_streams_are_read_and_written_in_turn():
    layers = stack_of(model(1))
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    mixer, channel = (unit.branch for _, unit in layers.layers[0].sublayers())
    y1 = x + mixer(x)
    y2 = x + channel(y1)
    torch.testing.assert_close(layers(x), (y1 + y2) / 2)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("length", [1, 63])
def test_gradients_without_remembered_activations_are_those_with_them(depth, length):
    layers = stack_of(model(depth)).double()
    x = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    wanted = [x, *layers.parameters()]
    ours = torch.autograd.grad(layers(x).sin().sum(), wanted)
    theirs = torch.autograd.grad(Units.forward(layers, x).sin().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def remembered(built, length=40):
    """Numbers kept for the way back, beside parameters."""
    own = {p.data_ptr() for p in built.parameters()}
    kept = []

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        built(torch.randn(2, length, 16, requires_grad=True))
    return sum(kept)


def test_activations_kept_for_training_do_not_grow_with_depth():
    assert remembered(stack_of(model(2))) == remembered(stack_of(model(8))) == 2 * 2 * 40 * 16
    plain = space(bp.Stack((BLOCK,) * 8)).sample(0).build()
    assert sum(1 for _ in plain.parameters()) == sum(1 for _ in model(8).parameters())


def test_it_decodes_as_it_prefills():
    built = model(3)
    with torch.no_grad():
        state, steps = built.init_state(2), []
        for t in range(17):
            logits, state = built.step(ids(17)[:, t:t + 1], state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), built(ids(17)), rtol=1e-5, atol=1e-5)


def test_a_supernet_trains_what_its_subnets_share():
    body = bp.Stack(bp.repeat(bp.Block(mixer=MIXER, channel=bp.SwiGLU(ratio=bp.choice(1, 2))), bp.integer(1, 3)),
                    bp.choice(bp.Reversible(), bp.Residual()))
    net = bp.Supernet(space(body), seed=0)
    for seed in range(6):
        architecture = net.space.sample(random.Random(seed))
        view, own = net.subnet(architecture), net.extract(architecture)
        view(ids(9)).sin().sum().backward()
        own(ids(9)).sin().sum().backward()
        torch.testing.assert_close(view(ids(9)), own(ids(9)), rtol=1e-5, atol=1e-5)
        total = sum(p.grad.square().sum() for p in own.parameters() if p.grad is not None)
        shared = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None)
        torch.testing.assert_close(shared, total, rtol=1e-3, atol=1e-4)
        for p in net.parameters():
            p.grad = None


def test_it_is_another_network_than_a_plain_residual():
    plain, reversible = (space(bp.Stack((BLOCK, BLOCK), residual)).sample(0)
                         for residual in (bp.Residual(), bp.Reversible()))
    assert plain.hash != reversible.hash
    assert plain.cost().parameters == reversible.cost().parameters


def test_a_reformer_finds_the_same_buckets_on_the_way_back():
    """Hashing chooses, and inputs are computed anew up to rounding: in float64 no choice turns."""
    block = bp.Block(mixer=bp.LSHAttention(heads=2, rounds=2, buckets=4, members=8), channel=bp.MLP(ratio=2))
    layers = stack_of(model(3, block)).double()
    x = torch.randn(2, 63, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    wanted = [x, *layers.parameters()]
    ours = torch.autograd.grad(layers(x).sin().sum(), wanted)
    theirs = torch.autograd.grad(Units.forward(layers, x).sin().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
