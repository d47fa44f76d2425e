"""Compute that really ran: for networks in which tokens or sequences pass layers by.

The costs of an architecture are formulas of sizes; where the input decides what runs, they stand for an expected share
of the tokens. Here the products are counted while a model works on batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..space.operator import tokens_of
from .cost import macs_flop_counter

__all__ = ["Measured", "MeasuredMacs", "measured_macs"]


class Measured(NamedTuple):
    """Multiply-adds per token: `macs` that ran, `expected` from the declarations (None for a plain module); and of how
    many tokens."""

    macs: float
    expected: float | None
    tokens: int

    @property
    def share(self) -> float | None:
        """What ran as a share of what was expected."""
        return None if self.expected is None else self.macs / self.expected


def measured_macs(model: nn.Module, batches: Iterable[Any]) -> Measured:
    """Multiply-adds per token that `model` executes on these batches, in evaluation mode, which is then set back.

    batches: inputs, or batches with `inputs`: token ids [B, T], or images. Sequences that are worked on together cost what
    the longest needs where their tokens part company, so a batch of one tells what a single sequence costs.

    Raises ValueError for no batches at all.
    """
    was_training, ran, expected, tokens = model.training, 0.0, 0.0, 0
    architecture = getattr(model, "architecture", None)
    model.eval()
    try:
        for batch in batches:
            inputs = getattr(batch, "inputs", batch)
            is_image = inputs.is_floating_point()
            length = architecture.default_length if is_image and architecture is not None else inputs.shape[1]
            ran += macs_flop_counter(model, inputs)
            expected += 0.0 if architecture is None else len(inputs) * architecture.cost(length).macs
            tokens += len(inputs) * tokens_of(length)
    finally:
        model.train(was_training)
    if not tokens:
        raise ValueError("compute is measured on at least one batch: got none")
    return Measured(ran / tokens, None if architecture is None else expected / tokens, tokens)


@dataclass(frozen=True)
class MeasuredMacs:
    """Multiply-adds per token on the first batches of a task's held-out split, as a function of (architecture, module)."""

    task: Any = None
    split: str = "validation"
    batches: int = 4

    def __call__(self, architecture: Any, module: Any) -> float:
        if self.task is None:
            raise ValueError('the objective "measured_macs" runs on the data of a task: this sweep has none; give task=')
        count, device = min(self.batches, self.task.num_batches(self.split)), next(module.parameters()).device
        found: list[Tensor] = [self.task.batch(self.split, step, 0).inputs.to(device) for step in range(count)]
        with torch.no_grad():
            return measured_macs(module, found).macs
