"""The image task: shapes, splits by class, folders and files of the user's own."""

import pickle

import bodyplan as bp
import numpy as np
import pytest
import torch
from bodyplan.evaluators import tasks
from torch import nn


class Constant(nn.Module):
    """Answers class 0 always."""

    def forward(self, pixels):
        return torch.tensor([1.0] + [0.0] * 9).expand(len(pixels), 10)


def write_pictures(folder, classes=2, each=10, size=6, colour=False):
    image = pytest.importorskip("PIL.Image", reason="image folders are read with Pillow")
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(each):
            shape = (size, size, 3) if colour else (size, size)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            image.fromarray(pixels).save(folder / f"class{label}" / f"{i}.png")


def test_the_shipped_cut_has_a_thousand_images_in_each_held_out_half():
    task = tasks.images()
    assert task.shape == (1, 28, 28) and task.num_classes == 10
    for split in ("validation", "test"):
        labels = torch.cat([task.batch(split, i, 0).targets for i in range(task.num_batches(split))])
        assert torch.bincount(labels).tolist() == [100] * 10


def test_answering_one_class_is_wrong_nine_times_in_ten():
    assert tasks.images().score(Constant(), "test") == pytest.approx(90.0)


def test_pixels_lie_between_minus_one_and_one():
    batch = tasks.images(batch=8).batch("train", 0, 0)
    assert batch.inputs.shape == (8, 1, 28, 28) and batch.inputs.dtype == torch.float32
    assert batch.inputs.min() == -1 and batch.inputs.max() <= 1


def test_batches_are_a_pure_function_of_split_step_and_seed():
    task = pickle.loads(pickle.dumps(tasks.images(batch=8)))
    assert torch.equal(task.batch("train", 5, 2).inputs, tasks.images(batch=8).batch("train", 5, 2).inputs)
    assert not torch.equal(task.batch("train", 5, 2).targets, task.batch("train", 6, 2).targets)


@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_per_class_is_split_class_by_class(tmp_path, colour):
    write_pictures(tmp_path, classes=3, each=20, colour=colour)
    task = tasks.images(tmp_path, batch=100)
    assert task.shape == (3 if colour else 1, 6, 6) and task.num_classes == 3
    assert [task._splits()[s].labels.size for s in ("train", "validation", "test")] == [48, 6, 6]


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_pictures(tmp_path / "a", size=6)
    write_pictures(tmp_path / "b", size=8)
    (tmp_path / "b" / "class0").rename(tmp_path / "a" / "class9")
    with pytest.raises(ValueError, match="give size="):
        tasks.images(tmp_path / "a")
    assert tasks.images(tmp_path / "a", size=4).shape == (1, 4, 4)


def test_an_npz_of_colour_images_is_read(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    np.savez(tmp_path / "own.npz", x_train=rng.integers(0, 256, (20, 5, 7, 3), dtype=np.uint8), y_train=y,
             x_test=rng.integers(0, 256, (20, 5, 7, 3), dtype=np.uint8), y_test=y)
    task = tasks.images(tmp_path / "own.npz")
    assert task.shape == (3, 5, 7) and task._splits()["validation"].labels.tolist().count(1) == 5


def test_bad_paths_are_answered_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        tasks.images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one sub-folder per class"):
        tasks.images(tmp_path)
    np.savez(tmp_path / "own.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match="lacks y_train, x_test, y_test"):
        tasks.images(tmp_path / "own.npz")


def space(**embed):
    return bp.Space(embed=bp.PatchEmbedding(**{"patch": 7, **embed}), width=8, body=bp.Block(channel=bp.MLP()),
                    head=bp.ClassifierHead(classes=10))


def test_a_space_must_fit_the_images():
    task = tasks.images()
    task.check(space())
    with pytest.raises(ValueError, match="got 3 x 28 x 28 and 1 x 28 x 28"):
        task.check(space(channels=3))
    with pytest.raises(ValueError, match="got 1 x 28 x 35"):
        task.check(space(image=(28, 35)))
    words = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=8, body=bp.Block(channel=bp.MLP()),
                     head=bp.LanguageHead())
    with pytest.raises(ValueError, match=r"use PatchEmbedding"):
        task.check(words)
    with pytest.raises(ValueError, match=r"use TokenEmbedding\(vocab=256\)"):
        tasks.text().check(space())
    tasks.text().check(words)


def test_the_answers_must_be_the_classes():
    wrong = bp.Space(embed=bp.PatchEmbedding(patch=7), width=8, body=bp.Block(channel=bp.MLP()),
                     head=bp.ClassifierHead(classes=9))
    with pytest.raises(ValueError, match="got 9 and 10"):
        tasks.images().check(wrong)
