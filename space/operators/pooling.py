"""Averages over a square neighbourhood: mixers without a parameter.

Legend: B batch, H and W rows and columns of tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param
from ..operator import Length, Operator, Source
from .spatial import as_grid, require_odd

__all__ = ["AveragePool", "Averaging", "Pooling", "enlarged", "mean_pooled"]


def mean_pooled(x_BHWD: Tensor, side: int) -> Tensor:
    """The mean of every `side` x `side` square; at the lower and right edge of the places that are there."""
    y_BDHW = F.avg_pool2d(x_BHWD.permute(0, 3, 1, 2), side, side, ceil_mode=True, count_include_pad=False)
    return y_BDHW.permute(0, 2, 3, 1)


def enlarged(x_BHWD: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse on constant squares: every place `side` x `side` times, cut to `height` x `width`."""
    return x_BHWD.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]


class Averaging(nn.Module):
    """The mean of the `size` x `size` neighbours that lie on the grid; with `less_itself`, minus the token."""

    def __init__(self, size: int, less_itself: bool):
        super().__init__()
        self.size, self.less_itself = size, less_itself

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        y_BDHW = F.avg_pool2d(x_BDHW, self.size, 1, self.size // 2, count_include_pad=False)
        y = y_BDHW.permute(0, 2, 3, 1).reshape(x.shape)
        return y - x if self.less_itself else y


class _Average(Operator):
    """What both have in common. Sums are not multiply-adds, so they cost none."""

    size: Any
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    less_itself: ClassVar[bool] = False

    def check(self, width: int, where: str) -> None:
        require_odd("size", self.size, where)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return Averaging(self.size, self.less_itself)

    def macs(self, width: int, length: Length) -> float:
        return 0.0

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0


@dataclass(frozen=True)
class Pooling(_Average):
    """The token mixer of PoolFormer: the mean of the neighbours minus the token, since the residual adds it again.

    MetaFormer Is Actually What You Need for Vision (Yu et al., 2022). size: side of the neighbourhood, odd.
    """

    size: Any = 3
    less_itself: ClassVar[bool] = True
    source: ClassVar[Source] = Source("MetaFormer Is Actually What You Need for Vision", 2022, systems=("S004",))


@dataclass(frozen=True)
class AveragePool(_Average):
    """The mean of the neighbours on the grid: `avg_pool_3x3` of NAS-Bench-201 (Dong and Yang, 2020).

    size: side of the neighbourhood, odd. At the edges only the neighbours that exist count.
    """

    size: Any = 3
    source: ClassVar[Source] = Source("NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
                                      2020)
