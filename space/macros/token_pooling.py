"""The pooling between stages of an image transformer: filters at a stride, several per channel.

Legend: B batch, H and W rows and columns of tokens, T tokens with a class token first, D width in, E width out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_divisor, require_whole
from ..operators.short_conv import tap_init
from ..operators.spatial import as_grid, padding, shaped_like
from .merging import Merging
from .stage import after_stride

__all__ = ["FilteredGrid", "FilteredTokens", "TokenPooling"]


class FilteredGrid(nn.Module):
    """Channel e of the output is a filter of channel `e // (E / D)` of the input, at every `stride`-th place."""

    def __init__(self, width: int, out_width: int, stride: int):
        super().__init__()
        self.width, self.stride = width, stride
        self.taps = nn.Parameter(torch.empty(out_width, stride + 1, stride + 1))

    def forward(self, x: Tensor) -> Tensor:
        return shaped_like(x, self.pooled(as_grid(x)))

    def pooled(self, x_BHWD: Tensor) -> Tensor:
        """[B, ceil(H / stride), ceil(W / stride), E], zeros outside the grid."""
        rows, columns = x_BHWD.shape[1:3]
        pads = (*padding(columns, self.stride, self.stride + 1), *padding(rows, self.stride, self.stride + 1))
        y_BEHW = F.conv2d(F.pad(x_BHWD.permute(0, 3, 1, 2), pads), self.taps[:, None], stride=self.stride, groups=self.width)
        return y_BEHW.permute(0, 2, 3, 1)


class FilteredTokens(FilteredGrid):
    """The same of the tokens behind the first, which are a grid; the first, of the class, is projected."""

    def __init__(self, width: int, out_width: int, stride: int, rows: int | None):
        super().__init__(width, out_width, stride)
        self.rows = rows
        self.class_token = nn.Linear(width, out_width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        rows = self.rows or math.isqrt(x_BTD.shape[1] - 1)
        patches_BTE = self.pooled(torch.unflatten(x_BTD[:, 1:], 1, (rows, -1))).flatten(1, 2)
        return torch.cat([self.class_token(x_BTD[:, :1]), patches_BTE], dim=1)


@dataclass(frozen=True)
class TokenPooling(Merging):
    """The pooling layer of PiT (Heo et al., 2021): a depthwise convolution at a stride, which may give several channels for
    each one, and a matrix of its own for the class token.

    An item of a body between the blocks of two stages. width: behind it, a multiple of that before; twice in the paper, None
    to keep it. stride: tokens along each dimension that become one; the filters are stride + 1 wide. class_token: whether the
    first token is one, the others being the patches of an image row by row; rows: how many rows those are, None for a square.
    Without it a grid is pooled; a sequence is a grid of one column. Neither filters nor matrix have biases.
    """

    width: Any = None
    stride: Any = 2
    class_token: Any = False
    rows: Any = None
    fixed: ClassVar[Mapping[str, str]] = {"width": "a channel is followed by another of its filters",
                                          "stage_width": "filters of a channel follow one another"}
    proof: ClassVar[str] = "tests/space/operators/test_images.py -k pooling_layer"
    source: ClassVar[Source] = Source("Rethinking Spatial Dimensions of Vision Transformers", 2021, options=("S172",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_divisor("the width before", width, "width", self.width or width, where)
        if self.rows is not None:
            require_whole("rows", self.rows, where, instead="use None for a square")

    def axes(self, width: int) -> dict[str, Param]:
        out, side = axis("stage_width", self.width or width), self.stride + 1
        taps = (axis(f"tap{i}", side, "centre") for i in range(2))
        token = {"class_token.weight": param(out, axis("width", width))} if self.class_token else {}
        return {"taps": param(out, *taps, init=tap_init(side * side)), **token}

    def build(self, width: int) -> nn.Module:
        if self.class_token:
            return FilteredTokens(width, self.width or width, self.stride, self.rows)
        return FilteredGrid(width, self.width or width, self.stride)

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        if not self.class_token:
            return super().out(width, length)
        patches = tokens_of(length) - 1
        rows = self.rows or max(math.isqrt(patches), 1)
        return self.width or width, 1 + tokens_of(after_stride((rows, -(-patches // rows)), (self.stride,)))

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Every tap at every place that is left, taps outside included, and the class token's matrix."""
        (out, smaller), token = self.out(width, length), bool(self.class_token)
        return float((tokens_of(smaller) - token) * out * (self.stride + 1) ** 2 + token * width * out)
