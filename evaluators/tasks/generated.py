"""What tasks have in common whose examples are drawn, not read: sequences of tokens with labels at some positions.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .base import SPLITS, Batch, Task, candidates, check_split, rng_seed

__all__ = ["IGNORED", "GeneratedTask", "check_whole"]

IGNORED = -100                       # the label of positions that are not asked about
STREAMS = {"validation": 1, "test": 2}
Drawn = tuple[NDArray[np.int64], NDArray[np.int64]]


class GeneratedTask(Task):
    """Tokens in, a token at every labelled position out; the metric is the share of wrong ones in per cent.

    A subclass is a frozen dataclass with `batch_size` and `held_out_batches` that defines `vocab` and `draw`. Training
    batches are drawn from (seed, step); held-out ones from the split and their number, the same for every seed.
    """

    batch_size: int
    held_out_batches: int

    metric: ClassVar[str] = "error"
    unit: ClassVar[str] = "%"

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """`count` sequences of tokens and their labels, both int64 (count, T); `IGNORED` where nothing is asked."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Symbols there are: what the embedding must know and the head may answer."""

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """(inputs, targets), both int64 (B, T)."""
        check_split(split)
        if split != "train" and not 0 <= step < self.num_batches(split):
            raise ValueError(f"{split} has {self.num_batches(split)} batches of this task: got number {step}")
        entropy = rng_seed(seed, step) if split == "train" else [STREAMS[split], step, 0]
        inputs, targets = self.draw(np.random.default_rng(entropy), self.batch_size)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def num_batches(self, split: str) -> int:
        """As many as `held_out_batches` says."""
        check_split(split, SPLITS[1:])
        return self.held_out_batches

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over the labelled positions."""
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED)

    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """Wrong labels times 100, and the number of labels; NaN logits make the score NaN."""
        asked = batch.targets != IGNORED
        count = int(asked.sum())
        if not bool(torch.isfinite(logits).all()):
            return math.nan, count
        return 100.0 * float((logits.argmax(-1) != batch.targets)[asked].sum()), count

    def check(self, space_or_plan: Any) -> None:
        """The embedding must take the tokens, and the head give logits at every position."""
        for embed in candidates(space_or_plan, "embed"):
            if getattr(embed, "vocab", 0) < self.num_tokens:
                raise ValueError(f"tasks.{self.name} needs token ids below {self.num_tokens} at embed: got {embed}; use "
                                 f"TokenEmbedding(vocab={self.num_tokens})")
        for head in candidates(space_or_plan, "head"):
            if hasattr(head, "classes"):
                raise ValueError(f"tasks.{self.name} needs logits per position at head: got {type(head).__name__}; use "
                                 "LanguageHead()")

    def digest(self) -> str:
        """SHA-256 of the first held-out examples: it changes when the generator does."""
        inputs, targets = self.batch("validation", 0, 0)
        return hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()


def check_whole(task: str, least: int = 1, **numbers: Any) -> None:
    """Raise ValueError unless every number is a whole one of at least `least`."""
    for label, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{label} must be a whole number of at least {least} at tasks.{task}: got {value!r}")
