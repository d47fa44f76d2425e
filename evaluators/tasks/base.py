"""What a task is: where batches come from, which loss is trained, which number is reported.

A task is a small frozen dataclass of settings. The arrays behind it are read on first use and kept once per
process (`functools.lru_cache` on the readers), so a task pickles in a few hundred bytes and costs a worker
one read.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...space.compiled.spec import variants
from ..precision import Precision

__all__ = ["SPLITS", "Batch", "Task", "candidates", "check_split", "rng_seed"]

SPLITS = ("train", "validation", "test")
MOST_VARIANTS = 1000


class Batch(NamedTuple):
    """What the model sees and what it should answer; the first axis of both is the example."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(self.inputs.to(device), self.targets.to(device))


class Task(ABC):
    """Data, loss and metric of one problem. Subclasses are frozen dataclasses of plain settings.

    Life of a task: it is made in the user's process (which checks paths and sizes), sent to workers by value,
    asked there for `batch` once per training step and for `score` once per candidate. `batch` is a pure
    function of its arguments, which is what makes resuming exact; held-out batches ignore the seed, so that
    all candidates are scored on the same examples (common random numbers).
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    goal: ClassVar[str] = "min"

    @abstractmethod
    def batch(self, split: str, step: int, seed: int) -> Batch:
        """Batch number `step` of `split`; `seed` matters for "train" alone."""

    @abstractmethod
    def num_batches(self, split: str) -> int:
        """Batches in a held-out split. Training never runs out, so asking for "train" raises ValueError."""

    @abstractmethod
    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss in nats of `logits` (last axis: classes); a scalar with gradient."""

    @abstractmethod
    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """The metric summed over a batch, and over how many predictions."""

    @abstractmethod
    def check(self, space_or_plan: Any) -> None:
        """Raise ValueError unless the embedding and the head of a space or plan fit the task."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: data, sizes, splits, metric."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the data; reads it."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the data or any setting that changes a score."""
        settings = {key: value for key, value in asdict(self).items() if key != "path"}  # type: ignore[call-overload]
        text = json.dumps([self.name, self.digest(), settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats of `model` on `batch`; a scalar with gradient."""
        return self.loss_of(model(batch.inputs), batch)

    def score(self, model: nn.Module, split: str = "validation", batches: int | None = None,
              dtype: str | None = None) -> float:
        """The metric of `model` on the first `batches` batches of a held-out split; default: all the task has.

        Runs on the model's device in evaluation mode without gradients and leaves the model's mode as it was; with a
        short `dtype` under autocast, as a training in it computes. NaN comes back as NaN.
        """
        check_split(split, SPLITS[1:])
        available = self.num_batches(split)
        count = available if batches is None else min(batches, available)
        if count < 1:
            raise ValueError(f"a score needs at least one batch: got batches={batches}; use 1 to {available}")
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        was_training = model.training
        model.eval()
        total, seen, precision = 0.0, 0, Precision(dtype)
        with torch.inference_mode():
            for step in range(count):
                batch = self.batch(split, step, 0).to(device)
                value, predictions = self.tally(precision.logits(model, batch.inputs), batch)
                total, seen = total + value, seen + predictions
        model.train(was_training)
        return total / seen


def candidates(space_or_plan: Any, field: str) -> list[Any]:
    """Every operator that may stand at "embed" or "head": all resolved ones of a space, the one of a plan."""
    if not hasattr(space_or_plan, "node"):
        return [getattr(space_or_plan, field)]
    return list(variants(space_or_plan.node(field), MOST_VARIANTS))


def check_split(split: str, allowed: tuple[str, ...] = SPLITS) -> None:
    """Raise ValueError unless `split` is one of `allowed`."""
    if split not in allowed:
        raise ValueError(f"unknown split {split!r}; use one of: {', '.join(allowed)}")


def rng_seed(seed: int, step: int) -> list[int]:
    """The entropy of one training batch for `numpy.random.default_rng`: distinct for every (seed, step)."""
    return [seed & 0xFFFF_FFFF_FFFF_FFFF, step]
