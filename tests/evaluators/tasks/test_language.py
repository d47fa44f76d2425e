"""The text task: fixed held-out windows, pure batches, clear answers to bad paths."""

import lzma
import math
import pickle

import numpy as np
import pytest
import torch
from bodyplan.evaluators import tasks
from bodyplan.evaluators.tasks import language
from torch import nn


class Uniform(nn.Module):
    """Predicts every byte with equal probability."""

    def forward(self, ids):
        return torch.zeros(*ids.shape, 256)


@pytest.fixture
def novel(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_bytes(bytes(i % 251 for i in range(20_000)))
    return path


def test_a_uniform_model_needs_eight_bits_per_byte():
    assert tasks.text(held_out_batches=2).score(Uniform(), "validation") == pytest.approx(8.0)


def test_batches_are_a_pure_function_of_split_step_and_seed():
    task = tasks.text(length=32, batch=4)
    first, again = task.batch("train", 7, seed=3), task.batch("train", 7, seed=3)
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, task.batch("train", 8, seed=3).inputs)
    assert not torch.equal(first.inputs, task.batch("train", 7, seed=4).inputs)


def test_targets_are_the_inputs_one_byte_later():
    batch = tasks.text(length=32, batch=4).batch("train", 0, seed=0)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_held_out_windows_ignore_the_seed_and_do_not_overlap(novel):
    task = tasks.text(novel, length=16, batch=4, held_out_batches=5)
    assert torch.equal(task.batch("test", 1, seed=0).inputs, task.batch("test", 1, seed=9).inputs)
    starts = np.sort(task._windows("test"))
    assert len(starts) == 20 and (np.diff(starts) >= 16).all()
    assert starts[-1] + 17 <= task._split("test").size


def test_splits_are_the_text_in_order_with_the_last_five_per_cent_held_out(novel):
    task = tasks.text(novel, length=16)
    parts = [task._split(split) for split in ("train", "validation", "test")]
    assert [part.size for part in parts] == [19_000, 500, 500]
    assert np.concatenate(parts).tobytes() == novel.read_bytes()


def test_a_short_text_has_fewer_held_out_batches_but_at_least_one(tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"x" * 5160)
    task = tasks.text(path, length=128)
    assert task.num_batches("validation") == task.num_batches("test") == 1
    assert task.batch("validation", 0, 0).inputs.shape == (1, 128)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.md").write_bytes(b"b" * 3000)
    (tmp_path / "a.txt").write_bytes(b"a" * 3000)
    (tmp_path / "c.bin").write_bytes(b"c" * 3000)
    task = tasks.text(tmp_path, length=16)
    assert language._read(task._where()).tobytes() == b"a" * 3000 + b"\n" + b"b" * 3000


def test_a_text_may_be_compressed(tmp_path, novel):
    path = tmp_path / "novel.xz"
    path.write_bytes(lzma.compress(novel.read_bytes()))
    assert tasks.text(path, length=16).digest() == tasks.text(novel, length=16).digest()


def test_pickles_are_small_and_keep_the_path(novel):
    task = tasks.text(novel, length=16)
    task.batch("train", 0, 0)
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task and len(pickle.dumps(task)) < 500
    assert torch.equal(copy.batch("train", 3, 1).inputs, task.batch("train", 3, 1).inputs)


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path, novel):
    elsewhere = tmp_path / "moved.txt"
    elsewhere.write_bytes(novel.read_bytes())
    assert tasks.text(novel, length=16).fingerprint == tasks.text(elsewhere, length=16).fingerprint
    before = tasks.text(novel, length=16).fingerprint
    assert tasks.text(novel, length=17).fingerprint != before
    novel.write_bytes(novel.read_bytes()[::-1])
    assert tasks.text(novel, length=16).fingerprint != before


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), (b"", "empty"), (b"x" * 5159, "needs "
                                                                                                "5,160")])
def test_bad_texts_are_answered_before_any_work(tmp_path, content, word):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=word):
        tasks.text(path)


def test_a_folder_without_text_says_which_files_it_looks_for(tmp_path):
    with pytest.raises(ValueError, match=r"\.txt, \.text, \.md, \.rst"):
        tasks.text(tmp_path)


def test_nan_logits_give_a_nan_score():
    class Broken(nn.Module):
        def forward(self, ids):
            return torch.full((*ids.shape, 256), math.nan)

    assert math.isnan(tasks.text(held_out_batches=1).score(Broken()))


def test_scoring_leaves_the_mode_of_the_model_alone():
    model = Uniform().train()
    tasks.text(held_out_batches=1).score(model)
    assert model.training


@pytest.mark.parametrize("call", [dict(length=0), dict(batch=-1), dict(held_out_batches=1.5)])
def test_sizes_below_one_are_refused(call):
    with pytest.raises(ValueError, match="at least 1"):
        tasks.text(**call)


def test_the_registry_knows_the_tasks_and_suggests_names():
    assert tasks.task_registry.get("text") is tasks.text
    with pytest.raises(ValueError, match="did you mean 'images'"):
        tasks.task_registry.get("image")
