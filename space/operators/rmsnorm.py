"""Root-mean-square normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["PlainRootMeanSquareNorm", "RMSNorm", "RootMeanSquareNorm"]


class RootMeanSquareNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale: `x / rms(x) * weight`."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class PlainRootMeanSquareNorm(nn.Module):
    """Divide by the root mean square over the last dimension."""

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps)


@dataclass(frozen=True)
class RMSNorm(Operator):
    """Root Mean Square Layer Normalization (Zhang and Sennrich, 2019). Each place and width has its own gain.

    gain: False for none, which TransNormerLLM calls SimpleRMSNorm (Qin et al., 2023).
    """

    eps: float = 1e-6
    gain: Any = True
    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("Root Mean Square Layer Normalization", 2019)

    def axes(self, width: int) -> dict[str, Param]:
        return {"weight": param(axis("width", width), share="own", init="ones")} if self.gain else {}

    def build(self, width: int) -> nn.Module:
        return RootMeanSquareNorm(width, self.eps) if self.gain else PlainRootMeanSquareNorm(self.eps)
