"""The tasks whose examples are drawn: the laws of their generators, checked on what they draw."""

import itertools
import pickle

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.tasks.generated import IGNORED
from torch import nn

TASKS = {
    "mqar": bp.tasks.mqar(pairs=4, length=32, vocab=32, batch=16, held_out_batches=2),
    "selective_copying": bp.tasks.selective_copying(tokens=4, length=20, vocab=8, batch=16, held_out_batches=2),
    "permutations": bp.tasks.permutations(things=3, length=9, batch=16, held_out_batches=2),
}


class Constant(nn.Module):
    """Says the same token everywhere."""

    def __init__(self, token, vocab):
        super().__init__()
        self.token, self.vocab = token, vocab

    def forward(self, ids_BT):
        logits = torch.zeros(*ids_BT.shape, self.vocab)
        logits[..., self.token] = 1.0
        return logits


class Answers(nn.Module):
    """Knows the labels of the batches it will be given, in order."""

    def __init__(self, task, split):
        super().__init__()
        self.batches = iter([task.batch(split, step, 0) for step in range(task.num_batches(split))])
        self.vocab = task.num_tokens

    def forward(self, ids_BT):
        return nn.functional.one_hot(next(self.batches).targets.clamp(min=0), self.vocab).float()


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_a_pure_function_and_held_out_ones_ignore_the_seed(name):
    task = TASKS[name]
    first = task.batch("train", 7, 3)
    assert torch.equal(first.inputs, task.batch("train", 7, 3).inputs)
    assert not torch.equal(first.inputs, task.batch("train", 8, 3).inputs)
    assert not torch.equal(first.inputs, task.batch("train", 7, 4).inputs)
    assert torch.equal(task.batch("test", 1, 0).inputs, task.batch("test", 1, 9).inputs)
    assert not torch.equal(task.batch("test", 1, 0).inputs, task.batch("validation", 1, 0).inputs)
    with pytest.raises(ValueError, match="test has 2 batches of this task: got number 2"):
        task.batch("test", 2, 0)


@pytest.mark.parametrize("name", TASKS)
def test_a_score_is_the_share_of_wrong_labels(name):
    task = TASKS[name]
    assert task.score(Answers(task, "validation")) == 0.0
    labels = torch.cat([task.batch("validation", step, 0).targets.flatten() for step in range(2)])
    labels = labels[labels != IGNORED]
    wanted = 100.0 * (labels != 20 % task.num_tokens).float().mean().item()
    assert task.score(Constant(20 % task.num_tokens, task.num_tokens)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_pickles_and_its_fingerprint_follows_its_settings(name):
    task = TASKS[name]
    assert pickle.loads(pickle.dumps(task)).fingerprint == task.fingerprint
    other = getattr(bp.tasks, name)(batch=16)
    assert other.fingerprint != task.fingerprint and len(task.fingerprint) == 16
    assert name.split("_")[-1][:4] in task.describe() or "recall" in task.describe() or "composition" in task.describe()


@pytest.mark.parametrize("name", TASKS)
def test_a_space_that_does_not_fit_is_refused(name):
    task = TASKS[name]
    small = bp.Space(embed=bp.TokenEmbedding(vocab=task.num_tokens - 1), width=8, body=bp.Block(mixer=bp.ShortConv()),
                     head=bp.LanguageHead())
    with pytest.raises(ValueError, match=rf"tasks.{name} needs token ids below {task.num_tokens} at embed.*use Token"):
        task.check(small)
    scores = bp.Space(embed=bp.TokenEmbedding(vocab=task.num_tokens), width=8, body=bp.Block(mixer=bp.ShortConv()),
                      head=bp.ClassifierHead(classes=4))
    with pytest.raises(ValueError, match=rf"tasks.{name} needs logits per position at head.*use LanguageHead"):
        task.check(scores)


def test_recall_asks_every_key_once_for_the_value_behind_it():
    task = bp.tasks.mqar(pairs=5, length=40, vocab=32, batch=200)
    inputs_BT, targets_BT = task.batch("train", 0, 0)
    keys_BK, values_BK = inputs_BT[:, 0:10:2], inputs_BT[:, 1:10:2]
    assert keys_BK.min() >= 1 and keys_BK.max() < 16 <= values_BK.min() and values_BK.max() < 32
    for row in range(200):
        value = dict(zip(keys_BK[row].tolist(), values_BK[row].tolist(), strict=True))
        assert len(value) == len(set(value.values())) == 5
        asked = (targets_BT[row] != IGNORED).nonzero().flatten().tolist()
        assert len(asked) == 5 and min(asked) >= 10 and all(t % 2 == 0 for t in asked)
        assert {inputs_BT[row, t].item() for t in asked} == set(value)
        assert all(targets_BT[row, t] == value[inputs_BT[row, t].item()] for t in asked)
        assert not inputs_BT[row, 10:][targets_BT[row, 10:] == IGNORED].any()


def test_recall_asks_soon_at_low_power_and_anywhere_at_power_one():
    def first_slot(power):
        targets_BT = bp.tasks.mqar(pairs=1, length=42, vocab=32, power=power, batch=4000).batch("train", 0, 0).targets
        return ((targets_BT != IGNORED).int().argmax(1) == 2).float().mean().item()

    weights = [j ** -0.99 for j in range(1, 21)]
    assert first_slot(0.01) == pytest.approx(weights[0] / sum(weights), abs=0.03)
    assert first_slot(1.0) == pytest.approx(1 / 20, abs=0.015)


def test_recall_fills_with_random_tokens_when_asked_to():
    inputs_BT = bp.tasks.mqar(pairs=2, length=40, vocab=32, random_fillers=True, batch=64).batch("train", 0, 0).inputs
    assert inputs_BT[:, 4:].unique().numel() == 32


def test_copying_writes_the_tokens_in_order_and_puts_no_blank_behind_the_last():
    task = bp.tasks.selective_copying(tokens=5, length=30, vocab=9, batch=300)
    inputs_BT, targets_BT = task.batch("train", 0, 0)
    assert (inputs_BT[:, 24] == 8).all() and (inputs_BT[:, 25:] == 7).all() and (targets_BT[:, :25] == IGNORED).all()
    for row in range(300):
        text = inputs_BT[row, :24]
        assert torch.equal(text[text < 7], targets_BT[row, 25:])
        assert text[-1] < 7
    before_first = (inputs_BT[:, :24] < 7).int().argmax(1).float().mean().item()
    assert before_first == pytest.approx(19 / 5, abs=0.4)


@pytest.mark.parametrize("things", [2, 3, 4])
def test_permutations_label_the_composition_so_far(things):
    group = list(itertools.permutations(range(things)))
    inputs_BT, targets_BT = bp.tasks.permutations(things=things, length=7, batch=20).batch("train", 0, 0)
    for row in range(20):
        order = tuple(range(things))
        for t in range(7):
            order = tuple(group[inputs_BT[row, t]][place] for place in order)
            assert group[targets_BT[row, t]] == order


@pytest.mark.parametrize(("call", "text"), [
    (lambda: bp.tasks.mqar(pairs=9, length=34), "at least 4 times pairs at tasks.mqar: got 34 and 9; use length=36"),
    (lambda: bp.tasks.mqar(pairs=4, vocab=8), "more than 2 times pairs at tasks.mqar: got 8 and 4; use vocab=10"),
    (lambda: bp.tasks.mqar(power=0), "power is above 0 and at most 1"),
    (lambda: bp.tasks.mqar(batch=0), "batch must be a whole number of at least 1 at tasks.mqar: got 0"),
    (lambda: bp.tasks.selective_copying(tokens=8, length=16), "got 16 and 8; use length=17 or more"),
    (lambda: bp.tasks.selective_copying(vocab=3), "vocab must be a whole number of at least 4"),
    (lambda: bp.tasks.permutations(things=7), "things is a whole number from 2 to 6 at tasks.permutations: got 7"),
    (lambda: bp.tasks.fashion_rows(order="columns"), 'order is "rows", "pixels" or "permuted".*got \'columns\''),
])
def test_bad_settings_are_answered_with_the_rule(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_fashion_rows_are_the_images_row_by_row_and_pixels_keep_their_order():
    images = bp.tasks.images(batch=3).batch("test", 0, 0)
    rows = bp.tasks.fashion_rows(batch=3).batch("test", 0, 0)
    assert torch.equal(rows.inputs, images.inputs[:, 0]) and torch.equal(rows.targets, images.targets)
    pixels = bp.tasks.fashion_rows("pixels", batch=3).batch("test", 0, 0).inputs
    assert torch.equal(pixels[..., 0], images.inputs.flatten(1))
    mixed = bp.tasks.fashion_rows("permuted", batch=3).batch("test", 0, 0).inputs
    assert not torch.equal(mixed, pixels) and torch.equal(mixed.sort(1).values, pixels.sort(1).values)
    assert torch.equal(mixed, bp.tasks.fashion_rows("permuted", batch=3).batch("test", 0, 5).inputs)


def test_fashion_rows_say_which_embedding_fits():
    task = bp.tasks.fashion_rows()
    body, head = bp.Block(mixer=bp.ShortConv()), bp.ClassifierHead(classes=10)
    task.check(bp.Space(embed=bp.FrameEmbedding(features=28, stack=1), width=8, body=body, head=head))
    with pytest.raises(ValueError, match=r"steps of 28 numbers at embed.*use FrameEmbedding\(features=28, stack=1\)"):
        task.check(bp.Space(embed=bp.FrameEmbedding(features=1, stack=1), width=8, body=body, head=head))
    assert task.fingerprint != bp.tasks.images().fingerprint
