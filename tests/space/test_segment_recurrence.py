"""Segments with a memory: against loops written from the paper, what they equal without memory, and what they cost."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import shaken, space
from macro_oracles import ATTENTION, BOTH_WAYS, CONV, MAMBA, Next, agree, close, holds_to_steps, ids, model_of, stream

BODIES = {
    "segments alone": bp.SegmentRecurrence((ATTENTION, CONV), segment=4, memory=None),
    "sensory": bp.SegmentRecurrence((CONV, ATTENTION), segment=4, sensory=3, memory=None),
    "mean": bp.SegmentRecurrence((ATTENTION, MAMBA), segment=5, sensory=2, memory="mean"),
    "recall": bp.SegmentRecurrence((ATTENTION, CONV), segment=4, sensory=2, cache=2, key_dim=6),
    "recall by the own half": bp.SegmentRecurrence((ATTENTION, CONV), segment=3, sensory=1, summary="own"),
    "segments of one token": bp.SegmentRecurrence(ATTENTION, segment=1, sensory=1),
    "layers that look both ways": bp.SegmentRecurrence((BOTH_WAYS, CONV), segment=4, sensory=1, memory="mean"),
}
CAUSAL = {name: body for name, body in BODIES.items() if body.causal}


def paper(config):
    """Segment by segment and sequence by sequence."""
    def run(layer, x_BTD):
        return torch.stack([row(layer, x_TD) for x_TD in x_BTD])

    def through(layer, vectors):
        return layer.body(torch.stack(vectors)[None])[0]

    def row(layer, x_TD):
        outputs, memories, past = [], [], []
        for start in range(0, len(x_TD), config.segment):
            tokens = list(x_TD[start:start + config.segment])
            before = []
            if config.memory == "mean":
                before = [layer.pool.weight @ torch.stack(outputs[-config.segment:]).mean(0) if past else layer.first]
            if config.memory == "recall":
                before = [layer.first]
                if past:
                    half = max(1, config.segment // 2)
                    read = tokens[:half] if config.summary == "own" else past[-half:]
                    query = layer.query.weight @ through(layer, [layer.prompt, *read, layer.prompt])[-1]
                    last = memories[-config.cache:]
                    scores = torch.stack([query @ (layer.key.weight @ m) for m in last]) / len(query) ** 0.5
                    before = [sum(w * m for w, m in zip(scores.softmax(0), last, strict=True))]
            sensory = past[len(past) - config.sensory:] if past and config.sensory else []
            y_SD = through(layer, [*before, *sensory, *tokens, *(before if config.memory == "recall" else [])])
            begin = len(before) + len(sensory)
            outputs += list(y_SD[begin:begin + len(tokens)])
            if config.memory == "recall":
                memories.append(y_SD[-1])
            past = tokens
        return torch.stack(outputs)
    return run


@pytest.mark.parametrize("tokens", [1, 4, 5, 13])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_segments_are_the_loop_of_the_paper(body, tokens):
    agree(model_of(body).layers[0], paper(body), stream(2, tokens), 1e-10)


def test_a_segment_recalled_by_its_own_half_looks_ahead_within_that_half():
    layer = model_of(bp.SegmentRecurrence(ATTENTION, segment=6, summary="own")).layers[0]
    x = stream(1, 18).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:, 12].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(15)), "all before, and the half of its segment"
    assert not BODIES["recall by the own half"].causal and not BODIES["recall by the own half"].streaming


@torch.no_grad()
@pytest.mark.parametrize("body", CAUSAL.values(), ids=CAUSAL.keys())
def test_segments_decode_token_by_token_as_in_one_pass(body):
    holds_to_steps(model_of((CONV, body)), ids())


@torch.no_grad()
@pytest.mark.parametrize("length", [3, 4, 13])
def test_no_later_token_changes_a_bit_of_earlier_segments(length):
    for body in CAUSAL.values():
        layer = model_of(body).float().layers[0]
        x = stream(2, length).float()
        for keep in range(1, length):
            changed = torch.cat([x[:, :keep], stream(2, length, seed=1).float()[:, keep:]], 1)
            assert torch.equal(layer(changed)[:, :keep], layer(x)[:, :keep])


@torch.no_grad()
def test_segments_without_a_memory_are_the_layers_on_each():
    layer = model_of(BODIES["segments alone"]).layers[0]
    x = stream(2, 11)
    assert torch.equal(layer(x), torch.cat([layer.body(part) for part in x.split(4, 1)], 1))
    assert torch.equal(layer(x[:, :4]), layer.body(x[:, :4]))


@torch.no_grad()
def test_one_segment_that_holds_all_is_the_layers_behind_the_learned_vector():
    for memory in ("mean", "recall"):
        layer = model_of(bp.SegmentRecurrence((ATTENTION, CONV), segment=16, memory=memory)).layers[0]
        x = stream(2, 15)
        behind = torch.cat([layer.first.expand(2, 1, -1), x], 1)
        close(layer(x), layer.body(behind)[:, 1:], 1e-14)


@torch.no_grad()
def test_with_one_memory_it_is_recalled_whatever_the_summary():
    layer = model_of(bp.SegmentRecurrence((ATTENTION, CONV), segment=4, cache=1)).layers[0]
    before = layer(stream())
    layer.prompt.normal_()
    layer.query.weight.normal_()
    assert torch.equal(layer(stream()), before)


@pytest.mark.parametrize(("memory", "reaches"), [(None, range(8, 14)), ("mean", range(14)), ("recall", range(14))])
def test_the_memory_alone_reaches_beyond_the_segment_and_its_sensory_tokens(memory, reaches):
    layer = model_of(bp.SegmentRecurrence(ATTENTION, segment=5, sensory=2, memory=memory)).layers[0]
    x = stream(1, 15).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:, 13].sum(), x)
    assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == list(reaches)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [4, 12, 13])
@pytest.mark.parametrize("memory", [None, "mean", "recall"])
@pytest.mark.parametrize("summary", ["own", "previous"])
def test_costs_of_segments_are_what_torch_executes(memory, summary, tokens):
    body = bp.SegmentRecurrence((ATTENTION, ATTENTION), segment=4, sensory=2, memory=memory, summary=summary, cache=2,
                                key_dim=6)
    model = space(body, width=16).sample(0).build()
    assert macs_flop_counter(model, ids(1, tokens)) == pytest.approx(model.architecture.cost(tokens).macs, rel=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [12, 14])
@pytest.mark.parametrize("memory", [None, "mean", "recall"])
def test_costs_of_decoding_segments_are_the_mean_over_one_and_what_is_kept(memory, tokens):
    body = bp.SegmentRecurrence((ATTENTION, ATTENTION), segment=4, sensory=2, memory=memory, cache=2, key_dim=6)
    model = space(body, width=16).sample(0).build().eval()
    cost, given = model.architecture.cost(tokens), ids(1, 24)
    _, state = model.step(given[:, :tokens], model.init_state(1))
    held = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert 4 * sum(t.numel() for t in held) == cost.state_bytes
    ran, (_, state) = [], model.step(given[:, :12], model.init_state(1))
    for t in range(12, 16):
        ran.append(macs_flop_counter(Next(model, state), given[:, t:t + 1]))
        _, state = model.step(given[:, t:t + 1], state)
    assert sum(ran) / 4 == pytest.approx(cost.decode_macs, rel=1e-9)


def test_segments_are_searched_and_ordered_in_one_supernet():
    body = bp.SegmentRecurrence(bp.repeat(ATTENTION, bp.integer(1, 2)), segment=bp.choice(3, 4), sensory=bp.choice(0, 2),
                                memory=bp.choice(None, "mean", "recall"), cache=bp.choice(1, 4), key_dim=bp.choice(None, 4))
    net = shaken(bp.Supernet(space(body, width=bp.choice(8, 16)), seed=0))
    seen = set()
    for seed in range(8):
        architecture = net.space.sample(random.Random(seed))
        seen.add(architecture.plan.layers[0].memory)
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    assert seen == {None, "mean", "recall"}
    for body in BODIES.values():
        model = model_of(body)
        before = model(ids())
        bp.order_axes(model)
        close(model(ids()), before, 1e-8)


@pytest.mark.parametrize(("body", "text"), [
    (bp.SegmentRecurrence(ATTENTION, segment=0), "segment must be a whole number"),
    (bp.SegmentRecurrence(ATTENTION, segment=4, sensory=5), "sensory tokens are of one segment at .*got 5 of 4"),
    (bp.SegmentRecurrence(ATTENTION, memory="all"), "memory is one of None, 'mean', 'recall'"),
    (bp.SegmentRecurrence(ATTENTION, summary="next"), "summary is one of 'own', 'previous'"),
    (bp.SegmentRecurrence(ATTENTION, cache=0), "cache must be a whole number"),
])
def test_segments_that_cannot_be_are_refused(body, text):
    with pytest.raises(ValueError, match=text):
        space(body, width=16)
