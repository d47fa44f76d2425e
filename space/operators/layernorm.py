"""Layer normalisation, and the norm that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["LayerNorm", "LayerNormalisation", "NoNorm", "PartialNormalisation"]


class LayerNormalisation(nn.Module):
    """Mean 0 and variance 1 over the last dimension, then a gain and, with `bias`, a shift."""

    def __init__(self, width: int, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PartialNormalisation(LayerNormalisation):
    """One of the two parts of layer normalisation: without the mean (`projects`), or to a root mean square of 1."""

    def __init__(self, width: int, bias: bool = True, eps: float = 1e-5, projects: bool = True):
        super().__init__(width, bias, eps)
        self.projects = projects

    def forward(self, x: Tensor) -> Tensor:
        if self.projects:
            x = (x - x.mean(-1, keepdim=True)) * self.weight
        else:
            x = nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return x if self.bias is None else x + self.bias


@dataclass(frozen=True)
class LayerNorm(Operator):
    """Layer Normalization (Ba et al., 2016). Each place and width has its own gain and, with `bias`, its own shift.

    Its two parts (On the Expressivity Role of LayerNorm in Transformers' Attention, Brody et al., 2023): project, the mean
    is taken off, which projects onto the vectors orthogonal to that of ones; scale, what is left is scaled to norm
    sqrt(width). project=False is an RMS norm with a shift; at least one is True.
    """

    bias: Any = True
    eps: float = 1e-5
    project: Any = True
    scale: Any = True
    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("Layer Normalization", 2016, systems=("S209",))

    def check(self, width: int, where: str) -> None:
        if not self.project and not self.scale:
            raise ValueError(f"a layer norm projects or scales at {where}: got project=False and scale=False; use Affine() "
                             "for a gain and a shift alone, NoNorm() for nothing")

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        gain = {"weight": param(d, share="own", init="ones")}
        return gain | {"bias": param(d, share="own", init="zeros")} if self.bias else gain

    def build(self, width: int) -> nn.Module:
        if self.project and self.scale:
            return LayerNormalisation(width, bool(self.bias), self.eps)
        return PartialNormalisation(width, bool(self.bias), self.eps, bool(self.project))


@dataclass(frozen=True)
class NoNorm(Operator):
    """Leaves the stream as it is, for operators that normalise inside, as `ConvNeXtUnit` does (Liu et al., 2022)."""

    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("A ConvNet for the 2020s", 2022)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return nn.Identity()
