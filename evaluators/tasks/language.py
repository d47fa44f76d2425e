"""Byte-level language modelling on text: predict every next byte, report bits per byte."""

from __future__ import annotations

import functools
import hashlib
import lzma
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .base import Batch, Task, candidates, check_split, rng_seed

__all__ = ["TextTask", "text"]

SHIPPED = Path(__file__).parent / "data" / "sotu.txt.xz"
SUFFIXES = (".txt", ".text", ".md", ".rst")
HELD_OUT = 0.05
BYTES = 256


@dataclass(frozen=True)
class TextTask(Task):
    """Settings of `text`; use that function, which checks them."""

    path: str | None
    length: int
    batch_size: int
    held_out_batches: int

    name: ClassVar[str] = "text"
    metric: ClassVar[str] = "bits_per_byte"
    unit: ClassVar[str] = "bits/byte"
    num_tokens: ClassVar[int] = BYTES

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """(inputs, targets), both int64 of shape (batch, length); targets are the inputs one byte later."""
        check_split(split)
        if split == "train":
            source = self._split("train")
            rng = np.random.default_rng(rng_seed(seed, step))
            starts = rng.integers(0, source.size - self.length, size=self.batch_size)
        else:
            if not 0 <= step < self.num_batches(split):
                raise ValueError(f"{split} has {self.num_batches(split)} batches of this task: got number "
                                 f"{step}")
            source = self._split(split)
            starts = self._windows(split)[step * self.batch_size:(step + 1) * self.batch_size]
        windows = source[starts[:, None] + np.arange(self.length + 1)].astype(np.int64)
        ids = torch.from_numpy(windows)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def num_batches(self, split: str) -> int:
        """Batches of the fixed held-out windows: `held_out_batches`, or what a short text has room for."""
        check_split(split, ("validation", "test"))
        return math.ceil(self._windows(split).size / self.batch_size)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over all positions."""
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())

    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """Summed bits and the number of bytes predicted."""
        nats = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="sum")
        return float(nats) / math.log(2), batch.targets.numel()

    def check(self, space_or_plan: Any) -> None:
        """The embedding must take bytes and the head must answer one of as many symbols."""
        for embed in candidates(space_or_plan, "embed"):
            if not hasattr(embed, "vocab"):
                raise ValueError(f"a text task needs token ids at embed: got {type(embed).__name__}; "
                                 f"use TokenEmbedding(vocab={BYTES})")
            if embed.vocab < BYTES:
                raise ValueError(f"a byte-level text task needs vocab of at least {BYTES} at embed: got "
                                 f"{embed.vocab}; use TokenEmbedding(vocab={BYTES})")
        for head in candidates(space_or_plan, "head"):
            if hasattr(head, "classes"):
                raise ValueError(f"a text task needs logits per position at head: got {type(head).__name__}; "
                                 "use LanguageHead()")

    def describe(self) -> str:
        """Where the text comes from, how much of it, how it is split."""
        name = "State of the Union addresses 1790-2021 (shipped)" if self.path is None else self.path
        size = _read(self._where()).size
        return (f"bytes of {name}: {size:,} bytes, last {HELD_OUT:.0%} held out (half validation, half "
                f"test), windows of {self.length}, batches of {self.batch_size}, bits per byte")

    def digest(self) -> str:
        """SHA-256 of all bytes, held-out ones included."""
        return _digest(self._where())

    def _where(self) -> str:
        return str(SHIPPED) if self.path is None else self.path

    def _split(self, split: str) -> NDArray[np.uint8]:
        return _splits(_read(self._where()))[split]

    def _windows(self, split: str) -> NDArray[np.int64]:
        size = int(self._split(split).size)
        return _held_out_starts(size, self.length, self.batch_size * self.held_out_batches)


def text(path: str | Path | None = None, length: int = 128, batch: int = 16,
         held_out_batches: int = 8) -> TextTask:
    """Byte-level language modelling, scored in bits per byte.

    The last 5 % of the text is held out: its first half is the validation split, its second half the test
    split. A score reads `held_out_batches * batch` windows, spread evenly over the split and the same for
    every model.

    Args:
        path: a text file (also `.xz`), or a folder whose `.txt`, `.text`, `.md` and `.rst` files are read in
            the order of their names, sub-folders included. Default: the shipped State of the Union addresses.
        length: bytes predicted per window.
        batch: windows per batch.
        held_out_batches: batches of a full score; a short text may have room for fewer.

    Raises:
        ValueError: the path is missing, empty, holds no text, or is too short for one held-out window.
    """
    for label, value in (("length", length), ("batch", batch), ("held_out_batches", held_out_batches)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{label} must be a whole number of at least 1 at tasks.text: got {value!r}")
    task = TextTask(None if path is None else str(_checked(Path(path))), length, batch, held_out_batches)
    if path is not None:
        _check_size(task)
    return task


def _checked(path: Path) -> Path:
    """The absolute path, known to hold at least one text file that is not empty."""
    path = path.expanduser().resolve()
    if not path.exists():
        raise ValueError(f"tasks.text reads a file or a folder that exists: {path} is missing"
                         "; check the path")
    if not _files(str(path)):
        raise ValueError(f"a folder for tasks.text holds files ending in {', '.join(SUFFIXES)}: {path} has "
                         "none")
    if sum(file.stat().st_size for file in _files(str(path))) == 0:
        raise ValueError(f"tasks.text needs text: {path} is empty")
    return path


def _check_size(task: TextTask) -> None:
    size = int(_read(task._where()).size)
    need = math.ceil(2 * (task.length + 1) / HELD_OUT)
    if size < need:
        raise ValueError(f"tasks.text holds out the last {HELD_OUT:.0%} in two halves, each of at least one "
                         f"window of length + 1 = {task.length + 1} bytes: {task.path} has {size:,} bytes "
                         f"and needs {need:,}; use more text or a shorter length")


def _files(where: str) -> list[Path]:
    path = Path(where)
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)


def _signature(where: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files: a text that changes on disk is read again."""
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in _files(where))


def _read(where: str) -> NDArray[np.uint8]:
    return _read_once(_signature(where))


def _digest(where: str) -> str:
    return _digest_once(_signature(where))


@functools.lru_cache(maxsize=2)
def _read_once(signature: tuple[tuple[str, int, int], ...]) -> NDArray[np.uint8]:
    contents = (lzma.decompress(Path(name).read_bytes()) if name.endswith(".xz") else Path(name).read_bytes()
                for name, _, _ in signature)
    return np.frombuffer(b"\n".join(contents), dtype=np.uint8)


@functools.lru_cache(maxsize=2)
def _digest_once(signature: tuple[tuple[str, int, int], ...]) -> str:
    return hashlib.sha256(_read_once(signature).tobytes()).hexdigest()


def _splits(everything: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Views of the three splits, in the order of the text."""
    held_out = math.floor(everything.size * HELD_OUT)
    first, middle = everything.size - held_out, everything.size - held_out // 2
    return {"train": everything[:first], "validation": everything[first:middle], "test": everything[middle:]}


@functools.lru_cache(maxsize=16)
def _held_out_starts(size: int, length: int, count: int) -> NDArray[np.int64]:
    """Starts of at most `count` windows that do not overlap, spread evenly, in mixed order."""
    slots = max(1, (size - 1) // length)
    chosen = np.linspace(0, slots - 1, num=min(count, slots)).round().astype(np.int64)
    return np.random.default_rng(0).permutation(chosen) * length
