"""Grafting: new operators learn what the old ones gave, and the network starts near the trained one."""

import bodyplan as bp
import pytest
import torch
from toy_models import batch, built, layer, loss_of, train_on, trained

INPUTS = torch.cat([batch(step)[0] for step in range(500, 508)])


@pytest.fixture(scope="module")
def model():
    return trained(*[layer()] * 3, steps=150)


def architecture(*mixers, channel=None):
    return built(*[bp.Block(mixer=m, channel=channel or bp.SwiGLU(ratio=2)) for m in mixers]).architecture


OLD = layer().mixer


@pytest.mark.long
def test_a_grafted_operator_is_regressed_on_what_the_old_one_gave(model):
    new = bp.GatedDeltaNet(heads=2)
    found = bp.grafted(model, architecture(OLD, new, OLD), INPUTS, steps=60, lr=5e-3)
    assert set(found.errors) == set(found.before) == {"layers.1.mixer.op"}
    assert found.errors["layers.1.mixer.op"] < 0.7 * found.before["layers.1.mixer.op"]
    given = []
    hook = model.layers[1].mixer.op.register_forward_hook(lambda _, x, y: given.append((x[0], y)))
    model(INPUTS)
    hook.remove()
    (x, y), kept = given[0], len(INPUTS) // 8
    with torch.no_grad():
        away = (found.model.layers[1].mixer.op(x[-kept:]) - y[-kept:]).square().mean() / y[-kept:].square().mean()
    assert found.errors["layers.1.mixer.op"] == pytest.approx(float(away), rel=1e-4)
    for name, parameter in model.named_parameters():
        if not name.startswith("layers.1.mixer.op"):
            assert torch.equal(parameter, dict(found.model.named_parameters())[name])


@pytest.mark.long
def test_a_grafted_network_starts_below_one_with_fresh_operators_and_needs_less(model):
    wanted = architecture(bp.GatedDeltaNet(heads=2), OLD, bp.GatedDeltaNet(heads=2))
    found = bp.grafted(model, wanted, INPUTS, steps=80, lr=5e-3).model
    bare = bp.grafted(model, wanted, INPUTS, steps=0).model
    assert loss_of(model) < loss_of(found) < loss_of(bare)
    assert loss_of(train_on(found, 10)) < loss_of(train_on(bare, 10))


def test_the_same_operators_leave_nothing_to_graft(model):
    found = bp.grafted(model, model.architecture, INPUTS)
    assert found.errors == {} and bp.difference(model, found.model, INPUTS) < 1e-7


def test_grafted_channel_mixers_of_another_size_start_from_what_both_have(model):
    wider = bp.grafted(model, architecture(OLD, OLD, OLD, channel=bp.SwiGLU(ratio=3)), INPUTS, steps=2)
    assert max(wider.before.values()) < 1e-10
    smaller = bp.grafted(model, architecture(OLD, OLD, OLD, channel=bp.SwiGLU(ratio=1)), INPUTS, steps=60, lr=5e-3)
    assert set(smaller.errors) == {f"layers.{i}.channel.op" for i in range(3)}
    assert all(smaller.errors[name] < smaller.before[name] for name in smaller.errors)


def test_l1_minds_outliers_less_than_l2():
    from bodyplan.evaluators.grafting import LOSSES, _regress

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.value.expand_as(x)

    wanted = torch.tensor([1.0] * 9 + [101.0])[:, None].repeat(20, 1)
    found = {}
    for name in ("l1", "huber", "l2"):
        op = Constant()
        _regress(op, wanted, wanted, LOSSES[name], 500, 0.3, 64, 0)
        found[name] = op.value.item()
    assert found["l1"] == pytest.approx(1, abs=0.5) and found["l2"] == pytest.approx(11, abs=2)
    assert found["l1"] < found["huber"] < found["l2"]


@pytest.mark.parametrize(("wanted", "more", "words"), [
    (lambda: architecture(OLD, OLD), {}, "exchanges operators of a row of blocks: got 2 layers"),
    (lambda: built(*[layer()] * 3, width=8).architecture, {}, "of width 8 for 3 of width 16"),
    (lambda: built(bp.Block(mixer=OLD), layer(), layer()).architecture, {}, "exchanged for another at layers.0."),
    (lambda: architecture(OLD, OLD, OLD), {"inputs": INPUTS[:1]}, "give 2 or more"),
    (lambda: architecture(OLD, OLD, OLD), {"loss": "cosine"}, "loss is one of l2, l1, huber")])
def test_what_cannot_be_grafted_is_refused(model, wanted, more, words):
    with pytest.raises(ValueError, match=words):
        bp.grafted(model, wanted(), **{"inputs": INPUTS, **more})
