"""The sum of the stream and of what a sublayer gives.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..axes import Param
from ..operator import Operator, Source

__all__ = ["Add", "WeightedSum"]


class WeightedSum(nn.Module):
    """`skip * x + branch * y`."""

    def __init__(self, skip: float = 1.0, branch: float = 1.0):
        super().__init__()
        self.skip, self.branch = skip, branch

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD if self.skip == 1.0 else self.skip * x_BTD
        return x_BTD + (y_BTD if self.branch == 1.0 else self.branch * y_BTD)


@dataclass(frozen=True)
class Add(Operator):
    """Residual sum with two fixed numbers: Deep Residual Learning (He et al., 2015) where both are 1.

    skip: alpha of DeepNorm (Wang et al., 2022) with a norm after the sum, or lambda of DeepScaleLM (Kedia et al., 2024).
    branch: beta of DeepScaleLM, or a / sqrt(L) of depth-muP (Yang et al., 2023). The topologies `DeepNorm`, `DeepScale` and
    `DepthScale` of a `Stack` put these in from its depth.
    """

    skip: Any = 1.0
    branch: Any = 1.0
    kind: ClassVar[str] = "join"
    source: ClassVar[Source] = Source("Deep Residual Learning for Image Recognition", 2015)

    def check(self, width: int, where: str) -> None:
        for name, number in (("skip", self.skip), ("branch", self.branch)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{name} is a number at {where}: got {number!r}; use 1.0")

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return WeightedSum(float(self.skip), float(self.branch))
