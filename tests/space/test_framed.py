"""Routes within frames: against a loop over frames, their two limits, what looks ahead, what is refused."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.framed import frames_of
from bodyplan.space.macros.routing import best_of_frames
from example_macros import shaken

torch.set_num_threads(1)

LAYERS = (bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1)), bp.Block(channel=bp.MLP(ratio=2)))
VISION = tuple(range(20))


def model(capacity=0.4, tokens=3, layers=LAYERS, weights=None, marks=VISION, body=None, **more):
    routed = bp.Routed(layers, capacity=capacity, within="frame", **more) if body is None else body
    space = bp.Space(embed=bp.MarkedEmbedding(vocab=32, marks=marks), width=16, body=bp.Framed(routed, tokens=tokens),
                     head=bp.LanguageHead())
    made = shaken(space.sample(0).build(seed=1)).double()
    if weights is not None:
        made.load_state_dict(weights.state_dict())
    return made.eval()


def ids(batch=3, tokens=23, seed=0, low=0):
    return torch.randint(low, 32, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def cut(row, tokens):
    """Lists of the places of every frame, token by token."""
    found, before = [], False
    for place, token in enumerate(row.tolist()):
        if token in VISION:
            if not before or len(found[-1]) == tokens:
                found.append([])
            found[-1].append(place)
        before = token in VISION
    return found


@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_frames_are_runs_of_marked_tokens_cut_into_so_many(tokens):
    given = ids(tokens=41)
    numbers = frames_of(torch.isin(given, torch.tensor(VISION)), tokens)
    for row, found in zip(given, numbers, strict=True):
        wanted = torch.zeros(41, dtype=torch.long)
        for number, places in enumerate(cut(row, tokens)):
            wanted[places] = number + 1
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("share", [0.2, 0.34, 0.5, 1.0])
def test_of_every_frame_the_best_share_is_kept_and_of_no_frame_all(share):
    given, score = ids(tokens=41), torch.randn(3, 41, generator=torch.Generator().manual_seed(2))
    numbers = frames_of(torch.isin(given, torch.tensor(VISION)), 5)
    for row, scores, kept in zip(given, score, best_of_frames(score, numbers, share), strict=True):
        wanted = {place for place, token in enumerate(row.tolist()) if token not in VISION}
        for places in cut(row, 5):
            wanted |= set(sorted(places, key=lambda p: -scores[p])[:max(1, math.ceil(share * len(places) - 1e-9))])
        assert set(kept.nonzero().flatten().tolist()) == wanted


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_route_within_frames_is_its_formula_sequence_by_sequence_with_all_gradients(both_ways):
    layers = (bp.Block(mixer=bp.Attention(heads=2, bidirectional=both_ways), channel=bp.MLP(ratio=1)),)
    module, given = model(layers=layers, weight="sigmoid"), ids()
    routed = module.layers[0].body.layers[0]
    x = module.embed(given).detach().requires_grad_()
    ours, rows = module.layers[0](x), []
    for row, stream in zip(given, x, strict=True):
        score = stream @ routed.router.weight[0]
        chosen = [place for place, token in enumerate(row.tolist()) if token not in VISION]
        for places in cut(row, 3):
            chosen += sorted(places, key=lambda p: -score[p].item())[:max(1, math.ceil(0.4 * len(places) - 1e-9))]
        chosen = sorted(chosen)
        after = routed.layers[0](stream[chosen][None])[0]
        out = list(stream)
        for place, y in zip(chosen, after, strict=True):
            share = torch.sigmoid(score[place]) if row[place].item() in VISION else 1
            out[place] = stream[place] + share * (y - stream[place])
        rows.append(torch.stack(out))
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    leaves = [x, *routed.parameters()]
    for mine, wanted in zip(*(torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in (ours, theirs)),
                            strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("weight", ["linear", "tanh", "sigmoid", "through", "none"])
def test_one_frame_and_no_text_is_the_route_of_a_sequence_bit_for_bit(weight):
    module = model(tokens=100, marks=tuple(range(32)), weight=weight)
    whole = model(weights=module, marks=tuple(range(32)), body=bp.Routed(LAYERS, capacity=0.4, weight=weight))
    assert torch.equal(module(ids()), whole(ids()))


def test_all_of_every_frame_unweighed_or_no_frame_at_all_is_the_plain_stack():
    text, plain = ids(low=20), model(capacity=1.0, weight="none")
    layers = plain.layers[0].body.layers[0].layers

    def stacked(given):
        x = plain.embed(given)
        for layer in layers:
            x = layer(x)
        return plain.head(plain.norm(x), plain.embed.weight)

    assert torch.equal(plain(ids()), stacked(ids()))
    assert torch.equal(model(capacity=0.1, weights=plain, weight="linear")(text), stacked(text))


def test_a_token_depends_on_nothing_behind_its_frame():
    module, given = model(), ids(batch=1, tokens=24)
    number = frames_of(torch.isin(given, torch.tensor(VISION)), 3)[0]
    for last in range(1, 23):
        if number[last] == 0 or number[last] != number[last + 1]:
            other = given.clone()
            other[:, last + 1:] = ids(batch=1, tokens=23 - last, seed=5)
            if number[last] and other[0, last + 1].item() in VISION and (number == number[last]).sum() < 3:
                continue                                                    # the frame would go on
            torch.testing.assert_close(module(other)[:, :last + 1], module(given)[:, :last + 1], rtol=1e-11, atol=1e-12)
    assert (bp.Routed(LAYERS, within="frame").causal, bp.Routed(LAYERS, within="frame").streaming) == (False, False)


def test_a_route_within_frames_learns_no_threshold():
    with pytest.raises(ValueError, match="about Routed"):
        bp.routing_loss(model().float(), ids())


@pytest.mark.parametrize(("made", "text"), [
    (lambda: bp.Routed(LAYERS, within="word").check(8, "body[0]"), "within is one of sequence, frame at body[0]: got 'word'"),
    (lambda: bp.Routed(LAYERS, within="frame", choose="threshold").check(8, "body[0]"), "is chosen by top_k at body[0]"),
    (lambda: bp.Framed(LAYERS, tokens=0).check(8, "body[0]"), "tokens must be a whole number of at least 1 at body[0]"),
    (lambda: bp.Routed((), within="frame").build(8)(torch.ones(1, 4, 8)), "put it into Framed(layers)"),
], ids=["within", "choose", "tokens", "nothing handed on"])
def test_what_cannot_be_built_is_named(made, text):
    with pytest.raises(ValueError) as caught:
        made()
    assert text in str(caught.value)
