"""Trained networks with layers more and layers less: bit for bit where they pass the stream on, measured elsewhere."""

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.space.conversions.spans import fitted_map, span_tensors
from torch.func import functional_call
from toy_models import IDS, batch, built, layer, loss_of, train_on, trained

CALIBRATION = torch.cat([batch(step)[0] for step in range(500, 504)])
KINDS = {"plain": layer(), "layer norm": bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2), norm=bp.LayerNorm()),
         "peri": bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2), placement="peri"),
         "scaled": bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2), join=bp.LayerScale()),
         "recurrent": bp.Block(mixer=bp.GatedDeltaNet(heads=2), channel=bp.SwiGLU(ratio=1)),
         "linear": bp.Block(mixer=bp.LinearAttention(heads=2), channel=bp.SwiGLU(ratio=1))}


# -- layers that pass the stream through ---------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_injected_layers_leave_the_function_bit_for_bit_and_learn(kind):
    model = trained(*[KINDS[kind]] * 4, steps=4)
    ours = bp.injected_layers(model, every=2)
    assert torch.equal(ours(IDS), model(IDS)) and len(ours.layers) == 6
    state, before = ours.init_state(3), model.init_state(3)
    for ids in IDS.split(1, 1):
        (logits, state), (wanted, before) = ours.step(ids, state), model.step(ids, before)
        assert torch.equal(logits, wanted)
    train_on(ours, 3)
    last = [p for name, p in ours.layers[2].named_parameters() if name.endswith(("out.weight", "down.weight"))]
    assert len(last) == 2 and all(p.abs().max() > 0 for p in last)


def test_injected_layers_stand_behind_every_kth_and_copy_it():
    model = trained(*[layer()] * 5, steps=4)
    ours = bp.injected_layers(model, every=2)
    weight = [each.mixer.op.query.weight for each in model.layers]
    for place, i in enumerate([0, 1, 1, 2, 3, 3, 4]):
        assert torch.equal(ours.layers[place].mixer.op.query.weight, weight[i])
    zeros = [place for place, each in enumerate(ours.layers) if not each.channel.op.down.weight.any()]
    assert zeros == [2, 5]


def test_appended_layers_leave_the_function_unless_the_last_ones_go():
    model = trained(*[layer()] * 3, steps=20)
    assert torch.equal(bp.appended_layers(model, 2)(IDS), model(IDS))
    ours = bp.appended_layers(model, 3, without=1)
    assert len(ours.layers) == 5 and torch.equal(ours(IDS), bp.dropped_layers(model, 2, 3)(IDS))
    assert bp.difference(model, ours, IDS) > 1e-3


def test_a_layer_drops_out_of_a_looped_body_as_well():
    model = trained(*[layer()] * 2, recursion=bp.Loop(2), steps=4)
    assert torch.equal(bp.injected_layers(model, 1)(IDS), model(IDS))


# -- layers twice --------------------------------------------------------------------------------------------------------

def test_duplicated_layers_run_twice_in_order():
    model = trained(*[layer()] * 4, steps=20)
    ours = bp.duplicated_layers(model, 1, 3)
    x = ours.embed(IDS)
    for i in (0, 1, 2, 1, 2, 3):
        x = model.layers[i](x)
    assert torch.equal(ours.run(model.embed(IDS)), x)
    assert bp.difference(model, ours, IDS) > 1e-3


def test_depth_upscaling_is_two_copies_without_the_seam():
    model, m = trained(*[layer()] * 5, steps=4), 2
    ours = bp.duplicated_layers(model, m, 5 - m)
    order = [*range(5 - m), *range(m, 5)]
    assert len(ours.layers) == 2 * (5 - m)
    for place, i in enumerate(order):
        assert torch.equal(ours.layers[place].mixer.op.out.weight, model.layers[i].mixer.op.out.weight)


@pytest.mark.long
def test_duplicated_layers_start_far_below_fresh_ones_and_recover():
    model = trained(*[layer()] * 4, steps=150)
    middle = bp.closest_span(model, CALIBRATION, 2, first=1)
    ours = bp.duplicated_layers(model, *middle)
    fresh = built(*ours.architecture.plan.layers)
    assert loss_of(model) < loss_of(ours) < loss_of(fresh)
    assert loss_of(train_on(ours, 30)) < loss_of(train_on(fresh, 30))


# -- which layers matter -------------------------------------------------------------------------------------------------

def test_importance_is_one_minus_the_cosine_of_in_and_out():
    model = trained(*[layer()] * 3, steps=10)
    x, wanted = model.embed(IDS), []
    with torch.no_grad():
        for each in model.layers:
            y = each(x)
            cosines = [float(a.double() @ b.double() / a.double().norm() / b.double().norm())
                       for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)]
            wanted.append(1 - sum(cosines) / len(cosines))
            x = y
    assert bp.block_importance(model, IDS) == pytest.approx(wanted, abs=1e-6)
    best = min(range(3), key=lambda i: wanted[i])
    assert bp.closest_span(model, IDS, 1) == (best, best + 1)


def test_a_silent_layer_matters_least():
    model = bp.injected_layers(trained(*[layer()] * 2, steps=10), 1)
    found = bp.block_importance(model, IDS)
    assert found[1] == pytest.approx(0, abs=1e-12) and found[0] > 1e-3
    assert bp.closest_span(model, IDS, 1) == (1, 2)
    assert torch.equal(bp.dropped_layers(model, 1, 2)(IDS), model(IDS))


# -- a linear map instead of layers --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def deep():
    """A model of five layers that has learned."""
    return trained(*[layer()] * 5, steps=150)


@pytest.mark.long
def test_a_linear_span_is_the_explicit_map_inside_the_matrix_before(deep):
    ours = bp.linear_span(deep, 2, 4, CALIBRATION)
    m, y, x = span_tensors(deep, 2, 4, CALIBRATION)
    map_DD = fitted_map(m, y, x, "l2")
    assert len(ours.layers) == 3
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in bp.dropped_layers(deep, 2, 4).named_parameters()}

    def explicit(ids):
        weights = [{name: p.double() for name, p in part.named_parameters()} for part in deep.layers]
        stream = deep.embed(ids).double()
        stream = functional_call(deep.layers[0], weights[0], (stream,))
        before = deep.layers[1]
        stream = functional_call(before.mixer, {name: p.double() for name, p in before.mixer.named_parameters()}, (stream,))
        given = functional_call(before.channel, {n: p.double() for n, p in before.channel.named_parameters()}, (stream,))
        stream = stream + (given - stream) @ map_DD
        stream = functional_call(deep.layers[4], weights[4], (stream,))
        return functional_call(deep.norm, {n: p.double() for n, p in deep.norm.named_parameters()}, (stream,))

    got = ours.norm(ours.run(ours.embed(IDS)))
    torch.testing.assert_close(got.double(), explicit(IDS), rtol=1e-4, atol=1e-4)


def test_the_map_is_the_optimum_of_least_squares(deep):
    m, y, x = span_tensors(deep, 2, 4, CALIBRATION)
    found = fitted_map(m, y, x, "l2")
    gradient = m.T @ (m @ found + y - x)
    assert gradient.abs().max() < 1e-8 * (m.T @ (x - y)).abs().max()
    wanted = torch.stack([torch.linalg.lstsq(m, (x - y)[:, [d]]).solution[:, 0] for d in range(16)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    best = (m @ found + y - x).square().sum()
    for seed in range(3):
        moved = found + 1e-3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert (m @ moved + y - x).square().sum() > best
    ridged = fitted_map(m, y, x, "l2", ridge=5.0)
    assert (m.T @ (m @ ridged + y - x) + 5.0 * ridged).abs().max() < 1e-8 * m.square().sum()
    assert ridged.square().sum() < found.square().sum()


def test_the_cosine_map_has_the_smaller_angle(deep):
    m, y, x = span_tensors(deep, 2, 4, CALIBRATION)

    def angle(map_DD):
        return float(1 - F.cosine_similarity(m @ map_DD + y, x, dim=-1).mean())

    cosine, l2, none = (angle(t) for t in (fitted_map(m, y, x, "cosine"), fitted_map(m, y, x, "l2"),
                                           torch.eye(16, dtype=torch.float64)))
    assert cosine < l2 < none


def test_a_span_that_is_linear_is_replaced_exactly():
    model = bp.injected_layers(trained(*[layer()] * 2, steps=20), 1)                 # 1 and 3 pass the stream through
    ours = bp.linear_span(model, 1, 2, CALIBRATION)
    assert bp.difference(model, ours, IDS) < 1e-5


@pytest.mark.parametrize("loss", ["l2", "cosine"])
def test_a_linear_span_loses_less_than_dropping_it(deep, loss):
    first, last = bp.closest_span(deep, CALIBRATION, 1, first=1)
    dropped, ours = bp.dropped_layers(deep, first, last), bp.linear_span(deep, first, last, CALIBRATION, loss)
    assert loss_of(deep) < loss_of(ours) < loss_of(dropped)


# -- what is refused -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("convert", "model", "words"), [
    (lambda m: bp.injected_layers(m, 3), lambda: built(layer()), "every is at least 1 and at most"),
    (lambda m: bp.injected_layers(m, 1), lambda: built(bp.Block(channel=bp.MLP(), placement="post")), "got another stream"),
    (lambda m: bp.injected_layers(m, 1), lambda: built(bp.Block(mixer=bp.Pooling())), "which has none called"),
    (lambda m: bp.appended_layers(m, 1, without=1), lambda: built(layer()), "one old one stays"),
    (lambda m: bp.duplicated_layers(m, 1, 1), lambda: built(layer()), "a span is first < last"),
    (lambda m: bp.dropped_layers(m, 0, 3), lambda: built(layer()), "a span is first < last"),
    (lambda m: bp.rearranged(m, [2]), lambda: built(layer()), "counted from 0 to 0"),
    (lambda m: bp.closest_span(m, IDS, 2), lambda: built(layer()), "fits into the body"),
    (lambda m: bp.block_importance(m, IDS), lambda: built(layer(), recursion=bp.Loop(2)), "runs 2 times"),
    (lambda m: bp.linear_span(m, 0, 1, IDS), lambda: built(layer(), layer()), "with a layer before it"),
    (lambda m: bp.linear_span(m, 1, 2, IDS, loss="l1"), lambda: built(layer(), layer()), "loss is one of l2, cosine"),
    (lambda m: bp.linear_span(m, 1, 2, IDS), lambda: built(bp.Block(mixer=bp.Attention()), layer()), "a matrix called down"),
    (lambda m: bp.linear_span(m, 1, 2, IDS), lambda: built(bp.Block(channel=bp.DepthwiseMLP()), layer()),
     "got outputs that differ"),
    (lambda m: bp.linear_span(m, 1, 2, IDS), lambda: built(bp.Block(channel=bp.MLP(), placement="post"), layer()),
     "use placement='pre'")])
def test_what_cannot_be_rearranged_is_refused(convert, model, words):
    with pytest.raises(ValueError, match=words):
        convert(model())
