"""Layer normalisation, and the norm that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["LayerNorm", "LayerNormalisation", "NoNorm"]


class LayerNormalisation(nn.Module):
    """Mean 0 and variance 1 over the last dimension, then a gain and, with `bias`, a shift."""

    def __init__(self, width: int, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class LayerNorm(Operator):
    """Layer Normalization (Ba et al., 2016). Each place and width has its own gain and, with `bias`, its own shift."""

    bias: Any = True
    eps: float = 1e-5
    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("Layer Normalization", 2016)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        gain = {"weight": param(d, share="own", init="ones")}
        return gain | {"bias": param(d, share="own", init="zeros")} if self.bias else gain

    def build(self, width: int) -> nn.Module:
        return LayerNormalisation(width, bool(self.bias), self.eps)


@dataclass(frozen=True)
class NoNorm(Operator):
    """Leaves the stream as it is, for operators that normalise inside, as `ConvNeXtUnit` does (Liu et al., 2022)."""

    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("A ConvNet for the 2020s", 2022)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return nn.Identity()
