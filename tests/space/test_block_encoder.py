"""A document by blocks: against a loop over blocks, and what reaches which vector."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import shaken, space
from macro_oracles import ATTENTION, BOTH_WAYS, close, ids, model_of, stream

LOCAL = (BOTH_WAYS, bp.Block(mixer=bp.Attention(heads=4, bidirectional=True), channel=bp.SwiGLU(ratio=1)))


def body(block=4, **more):
    return bp.BlockEncoder(LOCAL, block=block, **more)


def document(layer, x_BTD):
    """Block after block, sequence after sequence."""
    rows = []
    for x_TD in x_BTD:
        vectors = []
        for start in range(0, len(x_TD), layer.block):
            given = torch.stack([layer.first, *x_TD[start:start + layer.block]])
            y_E = layer.dense.weight @ layer.body(given[None])[0, 0] + layer.dense.bias
            vectors.append(y_E / (y_E @ y_E) ** 0.5)
        rows.append(torch.stack(vectors))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 4, 11])
@pytest.mark.parametrize("config", [body(), body(3), body(1), body(20)], ids=["four", "three", "one", "all"])
def test_blocks_are_the_loop_of_the_paper(config, tokens):
    layer, x = model_of((config,)).layers[0], stream(2, tokens).requires_grad_()
    leaves, pairs = [x, *layer.parameters()], (layer(x), document(layer, x))
    close(*pairs)
    weight = torch.randn(pairs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in pairs), strict=True):
        close(mine, theirs, 1e-10)


def test_every_token_reaches_the_vector_of_its_block_and_no_other():
    layer, x = model_of((body(4),)).layers[0], stream(1, 11).requires_grad_()
    assert layer(x).shape == (1, 3, 16)
    for block, tokens in enumerate((range(4), range(4, 8), range(8, 11))):
        (gradient,) = torch.autograd.grad(layer(x)[:, block].square().cumsum(-1).sum(), x)
        assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == list(tokens)


@torch.no_grad()
def test_one_block_is_the_layers_behind_the_learned_vector():
    layer = model_of((body(16),)).layers[0]
    x = stream(2, 13)
    whole = layer.dense(layer.body(torch.cat([layer.first.expand(2, 1, -1), x], 1))[:, 0])
    close(layer(x)[:, 0], whole / whole.norm(dim=-1, keepdim=True), 1e-14)


@pytest.mark.parametrize("tokens", [3, 12, 14])
def test_costs_of_blocks_are_what_torch_executes(tokens):
    architecture = space((body(4, width=24), bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))), width=16,
                         head=bp.LanguageHead(tied=False)).sample(0)
    assert macs_flop_counter(architecture.build(), ids(1, tokens)) == pytest.approx(architecture.cost(tokens).macs, rel=1e-9)


def test_two_levels_are_searched_in_one_supernet():
    lower = bp.BlockEncoder(bp.repeat(BOTH_WAYS, bp.integer(1, 2)), block=bp.choice(3, 4), width=bp.choice(None, 24))
    searched = space((lower, ATTENTION), width=bp.choice(8, 16), head=bp.LanguageHead(tied=False))
    net = shaken(bp.Supernet(searched, seed=0))
    for seed in range(6):
        architecture = net.space.sample(random.Random(seed))
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    model = net.extract(architecture).double()
    before = model(ids())
    bp.order_axes(model)
    close(model(ids()), before, 1e-8)


@pytest.mark.parametrize(("config", "text"), [(body(0), "block must be a whole number"),
                                              (body(width=0), "width must be a whole number")])
def test_blocks_that_cannot_be_are_refused(config, text):
    with pytest.raises(ValueError, match=text):
        space((config,), head=bp.LanguageHead(tied=False))
