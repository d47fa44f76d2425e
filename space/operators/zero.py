"""The operator that blocks its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param
from ..operator import Length, Operator, Source

__all__ = ["Zero", "Zeros"]


class Zeros(nn.Module):
    """Zeros of the shape of the input, of which no gradient is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Zero(Operator):
    """An edge that is off: `none` of NAS-Bench-201 (Dong and Yang, 2020). The output is zero, whatever comes in."""

    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    is_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
                                      2020)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return Zeros()

    def macs(self, width: int, length: Length) -> float:
        return 0.0

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
