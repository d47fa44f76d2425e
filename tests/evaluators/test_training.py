"""Training: it learns, it leaves alone what it does not touch, and it resumes to the bit."""

import contextlib
import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators import checkpoint
from bodyplan.evaluators.strategies import Visit
from bodyplan.evaluators.strategies.learngene import Learngene
from bodyplan.evaluators.strategies.multi_path import MultiPath
from bodyplan.evaluators.strategies.two_stage import TwoStage
from bodyplan.evaluators.tasks.base import Batch
from bodyplan.evaluators.trainer import distillation
from bodyplan.evaluators.training import learning_rate, step_seconds, train
from bodyplan.evaluators.weights import touch_masks
from torch import nn

NAMES = ["single_path", "fair", "multi_path", "sandwich", "attentive", "progressive_shrinking", "progressive_depth",
         "two_stage", "learngene"]


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


@pytest.mark.parametrize("strategy", NAMES)
def test_a_supernet_learns_by_every_strategy(space, task, strategy):
    net, subnet = bp.Supernet(space), space.architecture(space.largest())
    before = task.score(net.extract(subnet))
    record = train(net, task, steps=10, strategy=strategy, lr=0.02)
    assert record.steps == 10 and record.skipped == 0
    assert task.score(net.extract(subnet)) < 0.9 * before


def test_a_plain_module_learns(space, task):
    model = space.sample(0).build()
    record = train(model, task, steps=30)
    assert sum(record.losses[-5:]) < sum(record.losses[:5]) and record.tokens == 30 * 4 * 16


def resumed_and_straight(fresh, task, path, stop, **options):
    """The same training without a break, and stopped after `stop` steps and continued in another process' place."""
    straight, resumed = fresh(), fresh()
    whole = train(straight, task, **options)
    with pytest.raises(Stop):
        train(fresh(), task, **options, checkpoint=path, progress=stop_at(stop))
    with torch.no_grad():
        for tensor in resumed.parameters():
            tensor.zero_()                              # nothing may come from anywhere but the checkpoint
    record = train(resumed, task, **options, checkpoint=path, resume=True)
    assert same(weights(straight), weights(resumed))
    assert record.losses == whole.losses and record.tokens == whole.tokens
    return path


@pytest.mark.parametrize("strategy", [*NAMES, Learngene(first=0.3, then=TwoStage(first=0.6)),
                                      MultiPath(2, split=False)])
def test_interrupted_and_resumed_equals_straight_to_the_bit(space, task, tmp_path, strategy):
    resumed_and_straight(lambda: bp.Supernet(space), task, tmp_path / "c", 4, steps=6, strategy=strategy)


@pytest.mark.parametrize("options", [dict(optimizer="sgd", lr=0.1), dict(accumulate=3), dict(dtype="bfloat16"),
                                     dict(dtype="float16"), dict(clip=None), dict(clip=0.1, weight_decay=0.0)])
def test_every_option_resumes_to_the_bit(space, task, tmp_path, options):
    resumed_and_straight(lambda: bp.Supernet(space), task, tmp_path / "c", 3, steps=5, **options)


def test_a_plain_module_resumes_to_the_bit_with_its_statistics(tmp_path):
    task = bp.tasks.images(batch=16)

    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 5, 5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 10))

    path = resumed_and_straight(fresh, task, tmp_path / "c", 5, steps=9)
    tensors, _ = checkpoint.read_checkpoint(path)
    assert tensors["weight:1.running_var"].ne(1).all() and tensors["weight:1.num_batches_tracked"] == 9


def test_the_fixed_teacher_is_the_copy_taken_then_also_after_a_resume(space, task, tmp_path):
    options = dict(steps=12, strategy=TwoStage(first=0.5), checkpoint=tmp_path / "c")
    with pytest.raises(Stop):
        train(bp.Supernet(space), task, **options, progress=stop_at(6))
    before, _ = checkpoint.read_checkpoint(tmp_path / "c")
    assert not [key for key in before if key.startswith("teacher:")], "the first stage has no teacher"
    with pytest.raises(Stop):
        train(bp.Supernet(space), task, **options, resume=True, progress=stop_at(9))
    after, _ = checkpoint.read_checkpoint(tmp_path / "c")
    taken = {key: tensor for key, tensor in after.items() if key.startswith("teacher:")}
    assert taken["teacher:embed.weight"].equal(before["weight:embed/weight"])
    assert not taken["teacher:embed.weight"].equal(after["weight:embed/weight"])


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
    tensors, state = checkpoint.read_checkpoint(path)
    state["settings"]["strategy"] = "plain"
    checkpoint.write_checkpoint(path, tensors, state)
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
    net = bp.Supernet(space)
    before = {address: tensor.detach().clone() for address, tensor in net.tensors.items()}
    train(net, task, steps=3, strategy=lambda space, step, steps, seed: [Visit(small)])
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
    (dict(steps=1, warmup=1.0), "warmup is a share"), (dict(steps=1, strategy="sandwhich"), "did you mean 'sandwich'"),
    (dict(steps=1, accumulate=0), "accumulate must be"), (dict(steps=1, clip=0.0), "clip must be"),
    (dict(steps=1, dtype="float8"), "dtype of a training"), (dict(steps=1, optimizer="lion"), "one of adamw, sgd"),
    (dict(steps=1, rates={"nothing": 2.0}), "'nothing' is none"),
    (dict(steps=1, device="cuda:9"), "not on this machine"),
    (dict(steps=1, rates={"embed/weight": 0.0}), "a positive number at embed/weight")])
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


def test_the_seconds_of_a_step_leave_out_what_a_training_costs_once(space, task, monkeypatch):
    now, batch = [0.0], type(task).batch

    def slow(self, split, step, seed):
        now[0] += 100.0 if step < 2 else 3.0
        return batch(self, split, step, seed)

    monkeypatch.setattr(type(task), "batch", slow)
    for steps in (1, 4):
        assert step_seconds(space.sample(0).build(seed=0), task, steps, lambda: now[0]) == 3.0
    assert step_seconds(bp.Supernet(space, seed=0), task, 2, lambda: now[0], strategy="single_path") == 3.0


def test_what_layers_draw_is_a_function_of_the_step(tmp_path):
    block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=16, body=bp.GatedDepth((block, block), temperature=2.0),
                     head=bp.LanguageHead())
    task = bp.tasks.text(length=16, batch=4, held_out_batches=2)

    def trained(**options):
        model = space.sample(0).build(seed=0)
        with contextlib.suppress(KeyboardInterrupt):
            train(model, task, 6, checkpoint=tmp_path / "state.safetensors", **options)
        return model

    def stop(done, steps, loss):
        if done == 3:
            raise KeyboardInterrupt

    state = torch.get_rng_state()
    model = space.sample(0).build(seed=0)
    train(model, task, 6)
    assert torch.equal(torch.get_rng_state(), state)
    trained(progress=stop)
    torch.rand(7)
    again = trained(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = space.sample(0).build(seed=0)
    train(other, task, 6, seed=1)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
