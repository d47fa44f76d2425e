"""Training: it learns, it leaves alone what it does not touch, and it resumes to the bit."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators import training
from bodyplan.evaluators.sampling import Visit, sampling_strategies
from bodyplan.evaluators.tasks.base import Batch
from bodyplan.evaluators.training import distillation, learning_rate, touch_masks, train
from torch import nn


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Stop
    return progress


def weights(net):
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("strategy", ["sandwich", "single_path", "fair"])
def test_a_supernet_learns_by_every_strategy(space, task, strategy):
    net = bp.Supernet(space)
    record = train(net, task, steps=30, strategy=strategy)
    assert record.steps == 30 and record.skipped == 0
    assert sum(record.losses[-5:]) < sum(record.losses[:5])


def test_a_plain_module_learns(space, task):
    model = space.sample(0).build()
    record = train(model, task, steps=30)
    assert sum(record.losses[-5:]) < sum(record.losses[:5]) and record.tokens == 30 * 4 * 16


@pytest.mark.parametrize("kind", ["sandwich", "single_path", "module"])
def test_interrupted_and_resumed_equals_straight_to_the_bit(space, task, tmp_path, kind):
    def fresh():
        return space.sample(0).build() if kind == "module" else bp.Supernet(space)

    options = dict(steps=20, strategy="sandwich" if kind == "module" else kind)
    straight = fresh()
    whole = train(straight, task, **options)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Stop):
        train(fresh(), task, **options, checkpoint=path, progress=stop_at(10))
    resumed = fresh()
    record = train(resumed, task, **options, checkpoint=path, resume=True)
    assert same(weights(straight), weights(resumed))
    assert record.losses == whole.losses and record.tokens == whole.tokens


def test_a_checkpoint_on_the_clock_loses_at_most_the_steps_since(space, task, tmp_path):
    path = tmp_path / "training.safetensors"
    straight = bp.Supernet(space)
    train(straight, task, steps=8)

    class Killed(bp.BodyplanError):
        """Leaves without the parting checkpoint, as a killed process does."""

    def kill(done, steps, loss):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(bp.Supernet(space), task, steps=8, checkpoint=path, checkpoint_seconds=0, progress=kill)
    resumed = bp.Supernet(space)
    train(resumed, task, steps=8, checkpoint=path, resume=True)
    assert same(weights(straight), weights(resumed))


def test_a_finished_training_resumes_to_itself(space, task, tmp_path):
    path = tmp_path / "training.safetensors"
    net = bp.Supernet(space)
    first = train(net, task, steps=3, checkpoint=path)
    again = bp.Supernet(space, seed=5)
    assert train(again, task, steps=3, checkpoint=path, resume=True).losses == first.losses
    assert same(weights(net), weights(again))


def test_a_checkpoint_is_neither_overwritten_nor_resumed_by_another_training(space, task, tmp_path):
    path = tmp_path / "training.safetensors"
    train(bp.Supernet(space), task, steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="nothing is overwritten.*step 2"):
        train(bp.Supernet(space), task, steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="seed 0, now 1"):
        train(bp.Supernet(space), task, steps=2, seed=1, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="stands in one only"):
        train(space.sample(0).build(), task, steps=2, checkpoint=_relabel(path), resume=True)


def _relabel(path):
    """The same checkpoint, saying that a plain module made it."""
    tensors, state = training.read_checkpoint(path)
    state["settings"]["strategy"] = "plain"
    training.write_checkpoint(path, tensors, state)
    return path


def test_a_broken_checkpoint_is_said_to_be_broken(space, task, tmp_path):
    path = tmp_path / "training.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(bp.BodyplanError, match="must be readable"):
        train(bp.Supernet(space), task, steps=2, checkpoint=path, resume=True)


def test_no_partial_file_is_left_behind(space, task, tmp_path):
    path = tmp_path / "a" / "training.safetensors"
    train(bp.Supernet(space), task, steps=2, checkpoint=path, checkpoint_seconds=0)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["training.safetensors"]


def test_what_no_visited_subnet_uses_stays_to_the_bit(space, task):
    small = space.architecture(space.smallest())
    sampling_strategies.register("only the smallest", lambda space, step, seed: [Visit(small)])
    net = bp.Supernet(space)
    before = {address: tensor.detach().clone() for address, tensor in net.tensors.items()}
    train(net, task, steps=3, strategy="only the smallest")
    used = touch_masks([net.subnet(small)], net.tensors)
    for address, tensor in net.tensors.items():
        mask = used.get(address, torch.zeros(tensor.shape, dtype=torch.bool))
        moved = tensor != before[address]
        assert not (moved & ~mask).any() if mask is not None else moved.any()
    assert any(mask is not None for mask in used.values()) and len(used) < len(net.tensors)


def test_the_teacher_gets_no_gradient_from_its_students():
    teacher, student = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 5, requires_grad=True)
    value = distillation(student, teacher.detach())
    value.backward()
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert teacher.grad is None
    assert value.item() == pytest.approx(((p * (p / q).log()).sum() / 12).item(), rel=1e-5)


class Fragile(nn.Module):
    """Answers NaN on the steps it is told to."""

    def __init__(self, broken):
        super().__init__()
        self.table, self.broken, self.calls = nn.Embedding(256, 256), broken, 0

    def forward(self, ids):
        self.calls += 1
        return self.table(ids) * (math.nan if self.calls - 1 in self.broken else 1.0)


def test_a_step_that_is_not_finite_changes_nothing(task):
    model = Fragile({1})
    seen = []
    record = train(model, task, steps=3, progress=lambda *_: seen.append(weights(model)))
    assert same(seen[0], seen[1]) and not same(seen[1], seen[2])
    assert record.skipped == 1 and math.isnan(record.losses[1])


def test_a_diverged_training_ends_with_its_step_and_advice(task, tmp_path):
    with pytest.raises(bp.BodyplanError, match="up to step 20 .*lower lr"):
        train(Fragile(range(99)), task, steps=50, checkpoint=tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    rates = [learning_rate(step, 100, 1.0, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.55) and rates[-1] < 0.11
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_threads_are_set_for_the_training_and_restored(space, task):
    seen = []
    train(bp.Supernet(space), task, steps=1, threads=2,
          progress=lambda *_: seen.append(torch.get_num_threads()))
    assert seen == [2] and torch.get_num_threads() == 1


@pytest.mark.parametrize(("options", "word"), [
    (dict(steps=0), "steps must be"), (dict(steps=1, lr=-1.0), "lr must be"),
    (dict(steps=1, warmup=1.0), "warmup is a share"), (dict(steps=1, strategy="sandwhich"), "did you mean "
                                                                                            "'sandwich'")])
def test_bad_arguments_are_answered_before_any_work(space, task, options, word):
    with pytest.raises(ValueError, match=word):
        train(bp.Supernet(space), task, **options)


def test_a_model_without_trainable_parameters_is_refused(task):
    with pytest.raises(ValueError, match="require gradients"):
        train(nn.Identity(), task, steps=1)


def test_image_models_train_by_the_same_loop():
    task = bp.tasks.images(batch=32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = task.score(model)
    train(model, task, steps=60, lr=0.01)
    assert task.score(model) < 40 < before and isinstance(task.batch("train", 0, 0), Batch)
