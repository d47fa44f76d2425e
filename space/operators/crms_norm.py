"""Root-mean-square normalisation of a vector of mean zero that is stored without its last entry.

Legend: D width, one less than that of the vector it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["CRMSNorm", "CompressedRootMeanSquareNorm"]


class CompressedRootMeanSquareNorm(nn.Module):
    """`x / sqrt((sum x^2 + (sum x)^2) / (D + 1) + eps) * weight`: the entry left out is minus the sum of the others."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = wide.square().sum(-1, keepdim=True) + wide.sum(-1, keepdim=True).square()
        return (wide * torch.rsqrt(square / (x.shape[-1] + 1) + self.eps)).to(x.dtype) * self.weight


@dataclass(frozen=True)
class CRMSNorm(Operator):
    """Pre-RMSNorm and Pre-CRMSNorm Transformers (Jiang et al., 2023): of a stream of mean zero kept in D - 1 numbers.

    A Pre-LN network of width D equals one of width D - 1 with this norm, `compressed`, and one of width D with an RMS norm,
    `recentred`.
    """

    eps: float = 1e-6
    kind: ClassVar[str] = "norm"
    proof: ClassVar[str] = "tests/space/test_residuals.py -k pre_ln"
    source: ClassVar[Source] = Source("Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN "
                                      "Transformers", 2023, systems=("S297",))

    def axes(self, width: int) -> dict[str, Param]:
        return {"weight": param(axis("width", width), share="own", init="ones")}

    def build(self, width: int) -> nn.Module:
        return CompressedRootMeanSquareNorm(width, self.eps)
