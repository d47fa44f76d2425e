"""Stream and sublayer in learned shares that add up to one.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source

__all__ = ["Blend", "BlendedSum"]


class BlendedSum(nn.Module):
    """`x + sigmoid(weight) * (y - x)`, one weight per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return torch.lerp(x_BTD, y_BTD, torch.sigmoid(self.weight).to(x_BTD.dtype))


@dataclass(frozen=True)
class Blend(Operator):
    """The residual of EfficientViM (Lee et al., 2024): `(1 - a) x + a y` with `a = sigmoid(weight)` per channel.

    start: of the weights; the paper's 1e-4 is half and half.
    """

    start: Any = 1e-4
    kind: ClassVar[str] = "join"
    source: ClassVar[Source] = Source("EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space "
                                      "Duality", 2024, options=("S361",))

    def check(self, width: int, where: str) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, (int, float)) or not math.isfinite(self.start):
            raise ValueError(f"start is the number the weights start at, at {where}: got {self.start!r}; use 1e-4")

    def axes(self, width: int) -> dict[str, Param]:
        return {"weight": param(axis("width", width), share="own", init=Init("constant", low=float(self.start)))}

    def build(self, width: int) -> nn.Module:
        return BlendedSum(width)
