"""Rounds over the end of the sequence: against passes over all of it, and what they cost."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import shaken, space
from macro_oracles import ATTENTION, BOTH_WAYS, CONV, MAMBA, close, ids, model_of, stream

LAYERS = (ATTENTION, CONV, MAMBA)


def anew(layer, x_BTD):
    """Every round a whole pass over the sequence and the blocks so far, whose last outputs are its block."""
    seen, blocks = x_BTD, [layer.body(x_BTD)[:, -layer.block:]]
    for r in range(layer.rounds):
        seen = torch.cat([seen, torch.stack([token_BD + layer.round[r] for token_BD in blocks[-1].unbind(1)], 1)], 1)
        blocks.append(layer.body(seen)[:, -blocks[-1].shape[1]:])
    return blocks


@pytest.mark.parametrize("tokens", [1, 2, 11])
@pytest.mark.parametrize(("block", "rounds"), [(1, 1), (3, 2), (2, 4)])
def test_rounds_are_passes_over_the_sequence_and_all_blocks_before(block, rounds, tokens):
    layer = model_of(bp.LatentReasoning(LAYERS, block=block, rounds=rounds)).layers[0]
    x = stream(2, tokens).requires_grad_()
    ours, theirs = layer.every(x), anew(layer, x)
    assert len(ours) == rounds + 1 and torch.equal(layer(x), ours[-1]) and ours[-1].shape[1] == min(block, tokens)
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine, wanted, 1e-11)
    leaves, weight = [x, *layer.parameters()], torch.randn_like(ours[-1])
    for mine, wanted in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (ours[-1], theirs[-1])), strict=True):
        close(mine, wanted, 1e-9)


def test_without_layers_a_block_is_the_end_of_the_sequence_and_all_vectors_of_rounds():
    layer = model_of(bp.LatentReasoning((), block=3, rounds=4)).layers[0]
    x = stream(2, 9)
    close(layer(x), x[:, -3:] + layer.round.sum(0), 1e-14)


def test_logits_of_every_round_come_from_one_pass():
    model = model_of((CONV, bp.LatentReasoning(LAYERS, block=2, rounds=3), CONV))
    found = bp.reasoning_logits(model, ids())
    assert len(found) == 4
    close(found[-1], model(ids()), 1e-12)
    wanted = [model.head(model.norm(model.layers[2](block)), model.embed.weight)
              for block in anew(model.layers[1], model.layers[0](model.embed(ids())))]
    for mine, theirs in zip(found, wanted, strict=True):
        close(mine, theirs, 1e-11)
    with pytest.raises(ValueError, match="this is about LatentReasoning in a model: got none"):
        bp.reasoning_logits(model_of(CONV), ids())


@pytest.mark.parametrize("tokens", [2, 12])
def test_costs_of_rounds_are_what_torch_executes(tokens):
    body = bp.LatentReasoning((ATTENTION, ATTENTION), block=3, rounds=2)
    model = space(body, width=16).sample(0).build().eval()
    assert macs_flop_counter(model, ids(1, tokens)) == pytest.approx(model.architecture.cost(tokens).macs, rel=1e-9)


def test_blocks_and_rounds_are_searched_in_one_supernet():
    body = bp.LatentReasoning(bp.repeat(ATTENTION, bp.integer(1, 2)), block=bp.choice(1, 3), rounds=bp.choice(1, 3))
    net = shaken(bp.Supernet(space(body, width=bp.choice(8, 16)), seed=0))
    for seed in range(6):
        architecture = net.space.sample(random.Random(seed))
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    model = net.extract(architecture).double()
    before = model(ids())
    bp.order_axes(model)
    close(model(ids()), before, 1e-8)


@pytest.mark.parametrize(("body", "text"), [
    (bp.LatentReasoning(ATTENTION, block=0), "block must be a whole number"),
    (bp.LatentReasoning(ATTENTION, rounds=0), "rounds must be a whole number"),
    (bp.LatentReasoning(BOTH_WAYS), "layers of LatentReasoning are causal and decode with one: got Block that is not"),
])
def test_rounds_that_cannot_be_are_refused(body, text):
    with pytest.raises(ValueError, match=text):
        space(body).sample(0).build()
