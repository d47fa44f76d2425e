"""One step: its micro-batches, parts, precision, clipping and rates, and what its subnets learn from."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.precision import FIRST_SCALE, PATIENCE, Precision
from bodyplan.evaluators.strategies import Visit
from bodyplan.evaluators.strategies.attentive import Attentive
from bodyplan.evaluators.strategies.learngene import Learngene
from bodyplan.evaluators.strategies.multi_path import MultiPath
from bodyplan.evaluators.strategies.two_stage import TwoStage
from bodyplan.evaluators.tasks.base import Batch
from bodyplan.evaluators.trainer import distillation
from bodyplan.evaluators.training import train
from torch import nn


def weights(net):
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def after_one_step(space, task, **options):
    net = bp.Supernet(space)
    record = train(net, task, **{"steps": 1, "optimizer": "sgd", "lr": 0.1, "clip": None, **options})
    return weights(net), record


def close(a, b, tolerance=1e-6):
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < tolerance


@pytest.mark.parametrize("strategy", ["sandwich", "multi_path", "attentive", "learngene",
                                      TwoStage(first=0.5, hard=0.5)])
def test_micro_batches_add_up_to_the_whole_batch(space, strategy):
    task = bp.tasks.text(length=16, batch=8, held_out_batches=2)
    options = dict(strategy=strategy, steps=3)
    whole, a = after_one_step(space, task, **options)
    parts, b = after_one_step(space, task, **options, accumulate=3)
    close(whole, parts, 5e-6)
    assert a.losses == pytest.approx(b.losses, rel=1e-5) and a.tokens == b.tokens
    assert not same(whole, weights(bp.Supernet(space)))


def test_targets_that_do_not_count_weigh_nothing_in_micro_batches():
    class Holes(type(bp.tasks.text())):
        def batch(self, split, step, seed):
            inputs, targets = super().batch(split, step, seed)
            targets[:3, 2:] = -100
            return Batch(inputs, targets)

    task = Holes(None, 16, 4, 2)
    torch.manual_seed(0)
    start = nn.Embedding(256, 256)
    found = []
    for accumulate in (1, 2, 4):
        model = nn.Embedding.from_pretrained(start.weight.detach().clone(), freeze=False)
        record = train(model, task, steps=1, accumulate=accumulate, optimizer="sgd", lr=1.0, clip=None)
        assert record.tokens == 3 * 2 + 16
        found.append(weights(model))
    close(found[0], found[1])
    close(found[0], found[2])


def test_several_paths_on_parts_of_the_batch_give_the_mean_of_their_gradients(space, task):
    split, _ = after_one_step(space, task, strategy=MultiPath(paths=2))
    net = bp.Supernet(space)
    start, batch = weights(net), task.batch("train", 0, 0)
    for visit, rows in zip(MultiPath(paths=2).visits(space, 0, 1, 0), (slice(0, 2), slice(2, 4)), strict=True):
        logits = net.subnet(visit.architecture)(batch.inputs[rows])
        loss = task.loss_of(logits, Batch(batch.inputs, batch.targets[rows]))
        (loss / 2).backward()
    decayed = {n: 1 - 0.1 * 0.1 * (p.ndim > 1) for n, p in net.named_parameters()}
    by_hand = {n: start[n] if p.grad is None
               else torch.where(p.grad == 0, start[n], decayed[n] * start[n] - 0.1 * p.grad)
               for n, p in net.named_parameters()}
    close(by_hand, split)


def test_a_batch_smaller_than_the_number_of_paths_is_refused(space, task):
    with pytest.raises(ValueError, match="got a batch of 4 for 5 subnets"):
        train(bp.Supernet(space), task, steps=1, strategy=MultiPath(paths=5))


def test_the_visited_rival_is_the_one_with_the_lowest_or_highest_loss_on_the_batch(space, task):
    net = bp.Supernet(space)
    batch = task.batch("train", 0, 0)
    rivals = Attentive(rivals=3, tolerance=9.0).visits
    found = list(rivals(space, 0, 1, 0))[2].rivals
    losses = [float(task.loss(net.subnet(rival), batch).detach()) for rival in found]
    assert len(set(losses)) > 1
    for pick, chosen in (("best", min(losses)), ("worst", max(losses))):
        strategy = Attentive(pick=pick, tolerance=9.0)
        only = found[losses.index(chosen)]
        expected, _ = after_one_step(space, task, strategy=lambda s, step, steps, seed, only=only, strategy=strategy: [
            *list(strategy.visits(s, step, steps, seed))[:2], Visit(only, "student")])
        made, _ = after_one_step(space, task, strategy=strategy)
        assert same(expected, made)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_stays_close_and_keeps_weights_in_their_type(space, task, dtype):
    whole, exact = after_one_step(space, task, strategy="sandwich")
    mixed, record = after_one_step(space, task, strategy="sandwich", dtype=dtype)
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in mixed.values()) and not same(whole, mixed)
    close(whole, mixed, 5e-3)
    assert record.losses == pytest.approx(exact.losses, rel=2e-2) and record.skipped == 0


@pytest.mark.parametrize("mixer", [bp.GatedDeltaNet(heads=2), bp.Mamba2(state=8, head_dim=16), bp.Hyena(),
                                   bp.ShortConv(kernel=4)])
def test_mixers_train_in_mixed_precision(task, mixer):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=16, body=bp.Block(mixer), head=bp.LanguageHead(tied=True))

    def losses(dtype):
        record = train(space.sample(0).build(), task, steps=2, dtype=dtype, optimizer="sgd", lr=0.1)
        assert record.skipped == 0
        return record.losses

    assert losses("bfloat16") == pytest.approx(losses(None), rel=1e-2)


def test_the_loss_scale_halves_on_overflow_and_doubles_after_many_good_steps():
    precision = Precision("float16")
    assert precision.scale == FIRST_SCALE
    assert precision.update(False) and precision.scale == FIRST_SCALE / 2
    for _ in range(PATIENCE):
        assert not precision.update(True)
    assert precision.scale == FIRST_SCALE and precision.good_steps == 0
    precision.scale = 1.0
    assert not precision.update(False) and precision.scale == 1.0, "a scale of one is not to blame"
    assert not Precision("bfloat16").update(False) and Precision("bfloat16").scale == 1.0


def test_an_overflow_of_scaled_gradients_skips_the_step_and_training_goes_on(task):
    class Steep(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids).half() * 600.0

    model = Steep(256, 256)
    start = weights(model)
    seen = []
    record = train(model, task, steps=6, dtype="float16", lr=1e-4, progress=lambda *_: seen.append(weights(model)))
    assert record.skipped >= 1 and same(seen[0], start), "the first scale is too large for these gradients"
    assert not same(seen[-1], start) and all(torch.isfinite(p).all() for p in model.parameters())


def test_clipping_bounds_a_step_and_may_be_switched_off(space, task):
    start = weights(bp.Supernet(space))

    def moved(clip):
        made, _ = after_one_step(space, task, clip=clip, weight_decay=0.0, lr=1.0, warmup=0.0)
        return math.sqrt(sum(float(((made[n] - start[n]) ** 2).sum()) for n in start))

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(None) == pytest.approx(moved(1e9)) and moved(None) > 0.1


def test_rates_multiply_the_step_of_a_parameter_but_not_its_decay(space, task):
    net, address = bp.Supernet(space), "embed/weight"
    start = weights(net)
    name = next(n for n, p in net.named_parameters() if p is net.tensors[address])
    plain, _ = after_one_step(space, task, weight_decay=0.5)
    halved, _ = after_one_step(space, task, weight_decay=0.5, rates={address: 0.5})
    kept = 0.95 * start[name]
    torch.testing.assert_close(halved[name] - kept, 0.5 * (plain[name] - kept), rtol=1e-3, atol=1e-6)
    assert all(torch.equal(plain[n], halved[n]) for n in plain if n != name)


def test_a_given_teacher_is_learned_from_by_a_plain_module_and_left_alone(space, task):
    teacher = space.architecture(space.largest()).build(seed=5).train()
    before = weights(teacher)
    small = space.architecture(space.smallest())
    batch = task.batch("validation", 0, 0)

    @torch.no_grad()
    def gap(model):
        return float(distillation(model(batch.inputs), teacher(batch.inputs)))

    student = small.build()
    start = gap(student)
    train(student, task, steps=40, strategy=TwoStage(teacher), lr=0.02)
    assert gap(student) < 0.5 * start and same(before, weights(teacher)) and teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_the_constraint_of_the_learngene_holds_until_it_ends(task):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=8, head=bp.LanguageHead(tied=True),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=1)), times=bp.integer(1, 4)))
    net = bp.Supernet(space)
    bends, gaps = [], []

    def watch(done, steps, loss):
        layers = [next(t for a, t in net.tensors.items() if a.startswith(f"body[{i}].mixer/q")) for i in range(4)]
        bends.append(float((layers[0] - 2 * layers[1] + layers[2]).detach().abs().max()))
        gaps.append(float((layers[0] - layers[3]).detach().abs().max()))

    train(net, task, steps=8, strategy=Learngene(first=0.5), lr=0.02, progress=watch)
    assert max(bends[:4]) < 1e-6 and min(gaps[:4]) > 1e-4, "on a line that is not flat"
    assert min(bends[4:]) > 1e-4
