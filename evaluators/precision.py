"""Mixed precision: a forward pass in a short type, and the scale that keeps short gradients from vanishing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Precision", "check_dtype"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE = 2.0 ** 16
PATIENCE = 2000           # steps without an overflow after which the scale doubles


@dataclass
class Precision:
    """How a training computes: weights in their own type, forward passes under autocast in `dtype`.

    With float16 the loss is multiplied by a scale, and gradients are divided by it again; a step whose gradients
    overflow is left out and halves the scale, 2,000 good ones in a row double it (Mixed Precision Training,
    Micikevicius et al., 2018). bfloat16 has the range of float32 and needs no scale. Kept here and not in torch's
    GradScaler, which wants an optimizer of torch's own; `state()` goes into checkpoints.
    """

    dtype: str | None = None
    scale: float = 1.0
    good_steps: int = 0

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.dtype == "float16":
            self.scale = FIRST_SCALE

    def forward(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass on `device`."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, DTYPES[self.dtype])

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the scale."""
        if self.dtype == "float16":
            grads = [p.grad for p in parameters if p.grad is not None]
            if grads:
                torch._foreach_mul_(grads, 1 / self.scale)

    def update(self, is_finite: bool) -> bool:
        """Adapt the scale to a step; whether a gradient that is not finite is the scale's own doing."""
        if self.dtype != "float16":
            return False
        self.good_steps = self.good_steps + 1 if is_finite else 0
        if is_finite and self.good_steps == PATIENCE:
            self.scale, self.good_steps = self.scale * 2, 0
        is_overflow = not is_finite and self.scale > 1
        if is_overflow:
            self.scale /= 2
        return is_overflow

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.scale, self.good_steps = state["scale"], state["good_steps"]


def check_dtype(dtype: str | None) -> None:
    """Raise ValueError for a type nobody trains in."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype of a training is None, {' or '.join(map(repr, DTYPES))}: got {dtype!r}; None computes "
                         "in the type of the weights")
