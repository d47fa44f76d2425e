"""Images read as sequences: a row of pixels, or a single pixel, after the other.

Legend: B batch, T steps, F numbers per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from .base import Batch
from .generated import check_whole
from .vision import ImageTask

__all__ = ["RowsTask", "fashion_rows"]


@dataclass(frozen=True)
class RowsTask(ImageTask):
    """Settings of `fashion_rows`; use that function, which checks them."""

    order: str

    name: ClassVar[str] = "fashion_rows"

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """(inputs, targets): float32 (B, T, F) in [-1, 1], int64 labels (B,)."""
        pixels_BCHW, labels_B = super().batch(split, step, seed)
        steps_BTF = pixels_BCHW.flatten(1, 2)
        if self.order != "rows":
            steps_BTF = steps_BTF.flatten(1)[..., None]
        if self.order == "permuted":
            steps_BTF = steps_BTF[:, _fixed_order(steps_BTF.shape[1])]
        return Batch(steps_BTF.contiguous(), labels_B)

    @property
    def features(self) -> int:
        """Numbers per step."""
        return self.shape[2] if self.order == "rows" else 1

    def _check_embedding(self, embed: Any) -> None:
        if getattr(embed, "features", None) != self.features or getattr(embed, "stack", None) is None:
            raise ValueError(f"the embedding takes steps of {self.features} numbers at embed: got {embed}; use "
                             f"FrameEmbedding(features={self.features}, stack=1)")

    def describe(self) -> str:
        """What `images` says, and the order of the pixels."""
        return f"{super().describe()}; read as {self.order}"


def fashion_rows(order: str = "rows", batch: int = 64, held_out_batches: int | None = None) -> RowsTask:
    """The shipped Fashion images as sequences, scored as error in per cent.

    Args:
        order: "rows", 28 steps of 28 numbers; "pixels", 784 steps of one number; "permuted", those in one fixed random
            order, so that nothing near belongs together (Le et al., 2015).
        batch: images per batch.
        held_out_batches: batches of a score; default the whole split.

    Raises:
        ValueError: another order, or numbers below 1.
    """
    check_whole("fashion_rows", batch=batch, held_out_batches=1 if held_out_batches is None else held_out_batches)
    if order not in ("rows", "pixels", "permuted"):
        raise ValueError(f'order is "rows", "pixels" or "permuted" at tasks.fashion_rows: got {order!r}')
    return RowsTask(None, batch, None, held_out_batches, order)


def _fixed_order(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).permutation(count))
