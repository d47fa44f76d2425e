"""Image classification: the shipped Fashion cut, a folder with one sub-folder per class, or arrays."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .base import SPLITS, Batch, Task, candidates, check_split, rng_seed

__all__ = ["ImageTask", "images"]

SHIPPED = Path(__file__).parent / "data" / "fashion_mini.npz"
SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Split(NamedTuple):
    """Pixels uint8 (N, C, H, W) and labels int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageTask(Task):
    """Settings of `images`; use that function, which checks them."""

    path: str | None
    batch_size: int
    size: int | None
    held_out_batches: int | None

    name: ClassVar[str] = "images"
    metric: ClassVar[str] = "error"
    unit: ClassVar[str] = "%"

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """(inputs, targets): float32 pixels (batch, C, H, W) in [-1, 1], int64 labels (batch,)."""
        check_split(split)
        held = self._splits()[split]
        if split == "train":
            rng = np.random.default_rng(rng_seed(seed, step))
            rows = rng.integers(0, held.labels.size, size=self.batch_size)
        else:
            if not 0 <= step < self.num_batches(split):
                raise ValueError(f"{split} has {self.num_batches(split)} batches of this task: got number "
                                 f"{step}")
            rows = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, held.labels.size))
        pixels = torch.from_numpy(held.pixels[rows]).float().div_(127.5).sub_(1.0)
        return Batch(pixels, torch.from_numpy(held.labels[rows]))

    def num_batches(self, split: str) -> int:
        """Batches of the whole held-out split, or `held_out_batches` if that is fewer."""
        check_split(split, SPLITS[1:])
        available = math.ceil(self._splits()[split].labels.size / self.batch_size)
        return available if self.held_out_batches is None else min(available, self.held_out_batches)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(logits.float(), batch.targets)

    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """Wrong answers times 100, and the number of images; NaN logits make the score NaN."""
        if not bool(torch.isfinite(logits).all()):
            return math.nan, batch.targets.numel()
        wrong = (logits.argmax(-1) != batch.targets).sum().item()
        return 100.0 * wrong, batch.targets.numel()

    def check(self, space_or_plan: Any) -> None:
        """The embedding must take pixels of this shape and the head must answer one of the classes."""
        for embed in candidates(space_or_plan, "embed"):
            self._check_embedding(embed)
        for head in candidates(space_or_plan, "head"):
            if not hasattr(head, "classes"):
                raise ValueError(f"an image task needs one answer per image at head: got "
                                 f"{type(head).__name__}; use ClassifierHead(classes={self.num_classes})")
            if head.classes != self.num_classes:
                raise ValueError(f"the head answers as many classes as the data has at head: got "
                                 f"{head.classes} and {self.num_classes}; use "
                                 f"ClassifierHead(classes={self.num_classes})")

    def _check_embedding(self, embed: Any) -> None:
        channels, height, width = self.shape
        if not hasattr(embed, "sides"):
            raise ValueError(f"an image task needs pixels at embed: got {type(embed).__name__}; use "
                             "PatchEmbedding(...)")
        if (embed.channels, *embed.sides) != (channels, height, width):
            raise ValueError(f"the embedding takes images of the data's shape at embed: got {embed.channels} "
                             f"x {' x '.join(map(str, embed.sides))} and {channels} x {height} x {width}; "
                             f"use PatchEmbedding(channels={channels}, image=({height}, {width}))")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width); reads the data."""
        _, channels, height, width = self._splits()["train"].pixels.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes; reads the data."""
        return int(self._splits()["train"].labels.max()) + 1

    def describe(self) -> str:
        """Where the images come from, how many, how they are split."""
        name = "Fashion-MNIST, 12,000 images of it (shipped)" if self.path is None else self.path
        counts = ", ".join(f"{self._splits()[split].labels.size:,} {split}" for split in SPLITS)
        shape = " x ".join(str(n) for n in self.shape)
        return (f"images of {name}: {shape}, {self.num_classes} classes, {counts}, batches of "
                f"{self.batch_size}, error in %")

    def digest(self) -> str:
        """SHA-256 of all pixels and labels."""
        total = hashlib.sha256()
        for split in self._splits().values():
            total.update(split.pixels.tobytes())
            total.update(split.labels.tobytes())
        return total.hexdigest()

    def _splits(self) -> dict[str, Split]:
        path = SHIPPED if self.path is None else Path(self.path)
        return _read_once(str(path), path.stat().st_mtime_ns, self.size)


def images(path: str | Path | None = None, batch: int = 64, size: int | None = None,
           held_out_batches: int | None = None) -> ImageTask:
    """Image classification, scored as error in per cent.

    Args:
        path: a folder with one sub-folder of `.png` and `.jpg` files per class (needs Pillow; the last 10 %
            of each class by name are the test split, the 10 % before them validation), or an `.npz` file with
            `x_train`, `y_train`, `x_test`, `y_test` (images `uint8`, NHW or NHWC; the test images are cut per
            class into validation and test). Default: the shipped Fashion-MNIST cut.
        batch: images per batch.
        size: resize images of a folder to `size` x `size`; without it all must have one size.
        held_out_batches: batches of a score; default the whole split.

    Raises:
        ValueError: the path is missing, has fewer than two classes, or its images differ in size.
    """
    for label, value in (("batch", batch), ("size", size), ("held_out_batches", held_out_batches)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{label} must be a whole number of at least 1 at tasks.images: got {value!r}")
    where = None if path is None else Path(path).expanduser().resolve()
    if where is not None and not where.exists():
        raise ValueError(f"tasks.images reads a folder or an .npz file that exists: {where} is missing; "
                         "check the path")
    task = ImageTask(None if where is None else str(where), batch, size, held_out_batches)
    if where is not None:
        task._splits()
    return task


@functools.lru_cache(maxsize=2)
def _read_once(where: str, _mtime: int, size: int | None) -> dict[str, Split]:
    path = Path(where)
    return _read_folder(path, size) if path.is_dir() else _read_npz(path)


def _read_npz(path: Path) -> dict[str, Split]:
    if path.suffix != ".npz":
        raise ValueError(f"tasks.images reads a folder or an .npz file: got {path}")
    with np.load(path, allow_pickle=False) as held:
        missing = [name for name in ARRAYS if name not in held]
        if missing:
            raise ValueError(f"an .npz file for tasks.images holds {', '.join(ARRAYS)}: {path} lacks "
                             f"{', '.join(missing)}")
        x_train, y_train, x_test, y_test = (held[name] for name in ARRAYS)
    if x_train.dtype != np.uint8 or x_test.dtype != np.uint8:
        raise ValueError(f"images are uint8, 0 to 255: {path} holds {x_train.dtype} and {x_test.dtype}; "
                         "convert them")
    validation, test = _halves(y_test)
    return {"train": _split(x_train, y_train), "validation": _split(x_test[validation], y_test[validation]),
            "test": _split(x_test[test], y_test[test])}


def _halves(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the first and the second half of every class, in the order of the file."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    first = np.concatenate([row[:row.size // 2] for row in rows])
    second = np.concatenate([row[row.size // 2:] for row in rows])
    return np.sort(first), np.sort(second)


def _split(pixels: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    """NHW or NHWC pixels to NCHW."""
    channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(channels_first), labels.astype(np.int64))


def _read_folder(path: Path, size: int | None) -> dict[str, Split]:
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    files = [sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) for folder in classes]
    if len(classes) < 2:
        raise ValueError(f"a folder for tasks.images has one sub-folder per class, two at least: {path} has "
                         f"{len(classes)}")
    for folder, found in zip(classes, files, strict=True):
        if len(found) < 3:
            raise ValueError(f"a class needs at least 3 images ending in {', '.join(SUFFIXES)}: {folder} has "
                             f"{len(found)}")
    rows: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
    for label, found in enumerate(files):
        tail = max(1, len(found) // 10)
        parts = (found[:-2 * tail], found[-2 * tail:-tail], found[-tail:])
        for split, part in zip(SPLITS, parts, strict=True):
            rows[split] += [(file, label) for file in part]
    modes = {_open(file).mode for found in files for file in found[:1]}
    mode = "L" if modes == {"L"} else "RGB"
    return {split: _decode(pairs, size, mode) for split, pairs in rows.items()}


def _open(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as missing:
        raise ValueError("image folders are read with Pillow, which is not installed; pip install pillow, or "
                         "give an .npz file") from missing
    return Image.open(file)


def _decode(pairs: list[tuple[Path, int]], size: int | None, mode: str) -> Split:
    pixels = []
    for file, _ in pairs:
        with _open(file) as opened:
            picture = opened.convert(mode)
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size))
        pixels.append(np.asarray(picture, dtype=np.uint8))
        if pixels[-1].shape != pixels[0].shape:
            raise ValueError(f"images of one task have one size: {file} is {pixels[-1].shape[:2]}, "
                             f"{pairs[0][0]} is {pixels[0].shape[:2]}; give size= to resize them")
    return _split(np.stack(pixels), np.array([label for _, label in pairs]))
