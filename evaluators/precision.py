"""Mixed precision: a forward pass in a short type, and the scale that keeps short gradients from vanishing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Precision", "check_dtype", "check_precision"]

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
        self.dtype = check_dtype(self.dtype)
        if self.dtype == "float16":
            self.scale = FIRST_SCALE

    def forward(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass on `device`."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, DTYPES[self.dtype])

    def logits(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """What `module` answers, computed in this precision on the device of `inputs`; in float32 if that is mixed."""
        with self.forward(inputs.device):
            logits: Tensor = module(inputs)
        return self.told(logits)

    def told(self, logits: Tensor) -> Tensor:
        """Logits of this precision as losses take them."""
        return logits if self.dtype is None else logits.float()

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


def check_dtype(dtype: str | None) -> str | None:
    """The short type of that name; None for "float32", which is the type of the weights. Raises ValueError for others."""
    if dtype is None or dtype == "float32":
        return None
    if dtype not in DTYPES:
        raise ValueError(f"dtype of a training is 'float32', {' or '.join(map(repr, DTYPES))}: got {dtype!r}; 'float32' "
                         "computes in the type of the weights")
    return dtype


def check_precision(device: torch.device, dtype: str | None) -> None:
    """Raise ValueError for a type in which this device does not compute, or only by way of another one."""
    short = check_dtype(dtype)
    if short is None:
        return
    is_own = device.type != "cuda" or short != "bfloat16" or torch.cuda.get_device_capability(device) >= (8, 0)
    if not (is_own and _computes(device, DTYPES[short])):
        raise ValueError(f"dtype must be one that the device computes in: {device} does not multiply in {short}; use "
                         "'float32'" + (" or 'float16'" if short == "bfloat16" else " or 'bfloat16'"))


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product under autocast comes out in `dtype`; where it cannot, torch warns and switches autocast off."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device.type, dtype):
                one_11 = torch.ones(1, 1, device=device)
                return (one_11 @ one_11).dtype == dtype
    except RuntimeError:
        return False
