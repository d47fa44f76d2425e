"""Masked optimizers: torch's where everything is touched, perfect stillness where nothing is."""

import pytest
import torch
from bodyplan.evaluators.optim import MaskedAdamW, MaskedSGD, clip_gradients, make_optimizer


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drive(optimizer, parameter, masks, lr=0.01):
    """One step per mask with the gradients a supernet would give: zero outside the mask."""
    for step, mask in enumerate(masks):
        grad = randn(*parameter.shape, seed=100 + step)
        parameter.grad = grad if mask is None else grad * mask
        optimizer.step(lr, {"w": mask})


def test_with_everything_touched_it_is_torch_adamw():
    ours, theirs = randn(5, 7).requires_grad_(), randn(5, 7).requires_grad_()
    mine = MaskedAdamW({"w": ours}, betas=(0.9, 0.99), weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(20):
        theirs.grad = randn(5, 7, seed=100 + step)
        reference.step()
    drive(mine, ours, [None] * 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_with_everything_touched_it_is_torch_sgd_with_momentum():
    ours, theirs = randn(5, 7).requires_grad_(), randn(5, 7).requires_grad_()
    reference = torch.optim.SGD([theirs], lr=0.01, momentum=0.9)
    for step in range(20):
        theirs.grad = randn(5, 7, seed=100 + step)
        reference.step()
    drive(MaskedSGD({"w": ours}, weight_decay=0.0), ours, [None] * 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_full_mask_equals_no_mask(kind):
    a, b = randn(5, 7).requires_grad_(), randn(5, 7).requires_grad_()
    drive(make_optimizer(kind, {"w": a}, 0.1), a, [None] * 10)
    drive(make_optimizer(kind, {"w": b}, 0.1), b, [torch.ones(5, 7, dtype=torch.bool)] * 10)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_entries_that_are_not_touched_stay_to_the_bit(kind):
    weight = randn(6, 6).requires_grad_()
    optimizer = make_optimizer(kind, {"w": weight}, 0.5)
    drive(optimizer, weight, [None] * 3)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:3, :2] = True

    def state():
        averages = [t for name, t in optimizer.tensors().items() if "count" not in name]
        return [t.detach().clone() for t in (weight, *averages)]

    before = state()
    drive(optimizer, weight, [mask] * 5)
    assert len(before) == {"adamw": 3, "sgd": 2}[kind]
    for now, then in zip(state(), before, strict=True):
        assert torch.equal(now[~mask], then[~mask]) and not torch.equal(now[mask], then[mask])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_every_entry_behaves_as_if_trained_alone_on_the_steps_that_touched_it(kind):
    torch.manual_seed(0)
    masks = [torch.rand(4, 4) < 0.4 for _ in range(12)]
    weight, decay = randn(4, 4).requires_grad_(), {"adamw": 0.1, "sgd": 0.0}[kind]
    drive(make_optimizer(kind, {"w": weight}, decay), weight, masks)
    for i in range(4):
        for j in range(4):
            alone = randn(4, 4)[i, j].reshape(1, 1).requires_grad_()
            single = (torch.optim.AdamW([alone], lr=0.01, betas=(0.9, 0.95), weight_decay=decay) if kind == "adamw"
                      else torch.optim.SGD([alone], lr=0.01, momentum=0.9))
            for step, mask in enumerate(masks):
                if mask[i, j]:
                    alone.grad = randn(4, 4, seed=100 + step)[i, j].reshape(1, 1)
                    single.step()
            torch.testing.assert_close(weight[i, j], alone[0, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("mask", [None, torch.ones(3, 3, dtype=torch.bool)])
def test_a_rate_multiplies_the_learning_rate_and_leaves_the_decay(kind, mask):
    def moved(rates, decay):
        weight = randn(3, 3).requires_grad_()
        drive(make_optimizer(kind, {"w": weight}, decay, rates), weight, [mask])
        return weight.detach() - randn(3, 3)

    plain, decay = moved(None, 0.0), moved(None, 0.5) - moved(None, 0.0)
    assert decay.abs().max() > 1e-3
    torch.testing.assert_close(moved({"w": 0.25}, 0.5), 0.25 * plain + decay, rtol=1e-4, atol=1e-6)


def test_decay_is_decoupled_from_the_gradient():
    for kind in ("adamw", "sgd"):
        weight = randn(3, 3).requires_grad_()
        weight.grad = torch.zeros(3, 3)
        make_optimizer(kind, {"w": weight}, 0.5).step(0.1)
        torch.testing.assert_close(weight.detach(), 0.95 * randn(3, 3))


def test_a_name_that_is_missing_is_not_touched_even_with_a_gradient():
    weight = randn(3).requires_grad_()
    weight.grad = torch.ones(3)
    before = weight.detach().clone()
    MaskedAdamW({"w": weight}).step(0.1, {})
    assert torch.equal(weight, before) and weight.grad is None


def test_vectors_are_not_decayed():
    gain = torch.ones(3, requires_grad=True)
    gain.grad = torch.zeros(3)
    MaskedAdamW({"w": gain}, weight_decay=0.9).step(0.1)
    assert torch.equal(gain, torch.ones(3))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_restored_state_continues_to_the_bit(kind):
    masks = [None, None, *(randn(4, 4, seed=i) < 0 for i in range(6))]
    straight, halved = randn(4, 4).requires_grad_(), randn(4, 4).requires_grad_()
    other = randn(3).requires_grad_()
    drive(make_optimizer(kind, {"w": straight, "v": other}, 0.1), straight, masks)
    first = make_optimizer(kind, {"w": halved, "v": other}, 0.1)
    for split, part in ((0, masks[:1]), (1, masks[1:4]), (4, masks[4:])):
        second = make_optimizer(kind, {"w": halved, "v": other}, 0.1)
        second.load({k: v.clone() for k, v in first.tensors().items()}, first.counts())
        for step, mask in enumerate(part, start=split):
            grad = randn(4, 4, seed=100 + step)
            halved.grad = grad if mask is None else grad * mask
            second.step(0.01, {"w": mask})
        first = second
    assert torch.equal(straight, halved)


@pytest.mark.parametrize(("options", "words"), [
    (dict(name="lion"), "one of adamw, sgd"), (dict(rates={"x": 1.0}), "'x' is none"),
    (dict(rates={"w": -1.0}), "a positive number at w"), (dict(rates={"w": float("nan")}), "a positive number at w")])
def test_bad_settings_are_answered(options, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(**{"name": "adamw", "parameters": {"w": randn(2)}, "weight_decay": 0.1, **options})


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1.0), (100.0, 5.0), (None, 5.0)])
def test_gradients_are_clipped_to_a_common_norm(most, expected):
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], most) == pytest.approx(5.0)
    assert (a.grad**2 + b.grad**2).sqrt().item() == pytest.approx(expected, rel=1e-4)
