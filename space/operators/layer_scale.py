"""What a sublayer gives, scaled by learned numbers before it is added to the stream.

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

__all__ = ["LayerScale", "ScaledSum"]


class ScaledSum(nn.Module):
    """`x + weight * y`, with one weight per channel or one for all."""

    def __init__(self, channels: int, init: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), init))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        return x_BTD + self.weight * y_BTD


@dataclass(frozen=True)
class LayerScale(Operator):
    """LayerScale of Going deeper with Image Transformers (Touvron et al., 2021): `x + diag(weight) y`.

    init: the paper takes 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond. per_channel: False for one number for the whole
    sublayer, which at init 0 is ReZero (Bachlechner et al., 2020).
    """

    init: Any = 1e-5
    per_channel: Any = True
    kind: ClassVar[str] = "join"
    source: ClassVar[Source] = Source("Going deeper with Image Transformers", 2021, options=("S175",))

    def check(self, width: int, where: str) -> None:
        if isinstance(self.init, bool) or not isinstance(self.init, (int, float)) or not math.isfinite(self.init):
            raise ValueError(f"init is the number the scales start at, at {where}: got {self.init!r}; use 1e-5")

    def axes(self, width: int) -> dict[str, Param]:
        channels = axis("width", width) if self.per_channel else axis("branch", 1)
        return {"weight": param(channels, share="own", init=Init("constant", low=float(self.init)))}

    def build(self, width: int) -> nn.Module:
        return ScaledSum(width if self.per_channel else 1, float(self.init))
