"""One two-dimensional filter per channel.

Legend: B batch, H and W rows and columns of tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .short_conv import tap_init
from .spatial import as_grid, require_odd

__all__ = ["DepthwiseConv2d", "DepthwiseConvolution2d", "GridFilters", "RandomFilters2d", "filtered", "square_taps"]


def square_taps(channels: Axis | Dim, kernel: int) -> Param:
    """One square filter per channel; a smaller kernel is the middle of a larger one."""
    return param(channels, axis("tap_rows", kernel, "centre"),
                 axis("tap_columns", kernel, "centre"), init=tap_init(kernel * kernel))


def filtered(x_BHWD: Tensor, taps_DSS: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """One filter per channel over a grid, zeros outside, at every `stride`-th place: [B, ceil(H / stride), ..., D]."""
    x_BDHW, reach = x_BHWD.permute(0, 3, 1, 2), dilation * (taps_DSS.shape[-1] // 2)
    y_BDHW = F.conv2d(x_BDHW, taps_DSS[:, None], None, stride, reach, dilation, taps_DSS.shape[0])
    return y_BDHW.permute(0, 2, 3, 1)


class GridFilters(nn.Module):
    """A depthwise convolution inside an operator, whose stream is a grid whatever came in."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.taps = nn.Parameter(torch.empty(width, kernel, kernel))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return filtered(x_BHWD, self.taps)


class DepthwiseConvolution2d(nn.Module):
    """`y[r, c] = sum over i, j of taps[i, j] x[r + d (i - k // 2), c + d (j - k // 2)]` per channel; zeros outside."""

    def __init__(self, width: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Parameter(torch.empty(width, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return filtered(as_grid(x), self.taps, 1, self.dilation).reshape(x.shape)


class RandomFilters2d(nn.Module):
    """The same with filters that stay as they were drawn."""

    def __init__(self, width: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.dilation = dilation
        self.random_taps = nn.Parameter(torch.empty(width, kernel, kernel), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return filtered(as_grid(x), self.random_taps, 1, self.dilation).reshape(x.shape)


@dataclass(frozen=True)
class DepthwiseConv2d(Operator):
    """The token mixer of ConvNeXt (Liu et al., 2022), without what surrounds it there: see `ConvNeXtUnit`.

    kernel: side of the square filter, odd. trainable: False keeps the filters as they were drawn, for the matrices around to
    combine (The Power of Linear Combinations: Learning with Random Convolutions, Gavrikov and Keuper, 2023): they are
    statistics, counted with no parameters, and the same in every network of a supernet. dilation: places between taps;
    layers of rising dilation see far with few taps (Multi-Scale Context Aggregation by Dilated Convolutions, Yu and Koltun,
    2015). A sequence is a grid of one column.
    """

    kernel: Any = 7
    trainable: Any = True
    dilation: Any = 1
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("A ConvNet for the 2020s", 2022, systems=("S170",), options=("S022",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        require_whole("dilation", self.dilation, where, instead="use 1 for taps side by side")

    def axes(self, width: int) -> dict[str, Param]:
        taps = square_taps(axis("width", width), self.kernel)
        return {"taps": taps} if self.trainable else {"random_taps": replace(taps, statistic=True)}

    def build(self, width: int) -> nn.Module:
        made = DepthwiseConvolution2d if self.trainable else RandomFilters2d
        return made(width, self.kernel, self.dilation)

    def macs(self, width: int, length: Length) -> float:
        """Every tap at every place, taps on the zeros outside included, as they are executed."""
        return float(tokens_of(length) * width * self.kernel**2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
