"""Attention among tokens that lie evenly over the whole grid, beside a convolution that joins those in between.

Legend: B batch, H and W rows and columns of tokens, D width, R and C windows down and across, A places of a window in one
dimension, N places of a window (A * A), K heads, P head_dim, E all heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .spatial import as_grid, grid_of, require_odd
from .windows import (
    attend_windows,
    check_heads,
    gather_windows,
    grid_of_interleaved,
    head_size,
    interleaved,
    projections,
    seen_in_windows,
    split_heads,
)

__all__ = ["InterleavedAttention", "InterleavedWindows"]


class InterleavedWindows(nn.Module):
    """A window holds every R-th row and every C-th column: `window` x `window` tokens, from the first to the last part of the
    grid. With a kernel, a depthwise convolution of the input is added."""

    def __init__(self, width: int, heads: int, head_dim: int, window: int, kernel: int | None):
        super().__init__()
        self.heads, self.window = heads, window
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.conv = None if kernel is None else GridFilters(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        _, height, width, _ = x_BHWD.shape
        rows_RA, columns_CA = (interleaved(size, self.window, x.device) for size in (height, width))
        q, k, v = (split_heads(project(gather_windows(x_BHWD, rows_RA, columns_CA)), self.heads)
                   for project in (self.query, self.key, self.value))
        fits = rows_RA.numel() == height and columns_CA.numel() == width
        seen = None if fits else seen_in_windows(height, width, rows_RA, columns_CA)
        y_BRCNE = attend_windows(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), v, seen)
        y_BHWE = grid_of_interleaved(y_BRCNE, (rows_RA.shape[1], columns_CA.shape[1]), height, width)
        y_BHWD: Tensor = self.out(y_BHWE)
        if self.conv is not None:
            y_BHWD = y_BHWD + self.conv(x_BHWD)
        return y_BHWD.view(x.shape)


@dataclass(frozen=True)
class InterleavedAttention(Operator):
    """Iwin Transformer (Huo and Li, 2025): windows of tokens that interleave, in parallel with a depthwise convolution; no
    positions.

    window: tokens of a window along each dimension; they lie side / window apart, so one layer joins the whole grid. kernel:
    side of the convolution's filters, odd; None for none, as on a grid that one window covers in the paper. head_dim
    defaults to width / heads. A sequence is a grid of one column. Where the window does not divide the grid, what would lie
    outside is not seen.
    """

    heads: Any = 4
    window: Any = 7
    kernel: Any = 3
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Iwin Transformer: Hierarchical Vision Transformer using Interleaved Windows", 2025,
                                      systems=("S111",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("window", self.window, where)
        if self.kernel is not None:
            require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        conv = {} if self.kernel is None else {"conv.taps": square_taps(axis("width", width), self.kernel)}
        return {**projections(width, self.heads, head_size(self, width)), **conv}

    def build(self, width: int) -> nn.Module:
        return InterleavedWindows(width, self.heads, head_size(self, width), self.window, self.kernel)

    def macs(self, width: int, length: Length) -> float:
        """All pairs in all windows and the filter; what fills up the last windows is projected to keys as well."""
        sides = [min(self.window, max(size, 1)) for size in grid_of(length)]
        places = math.prod(-(-size // side) * side for size, side in zip(grid_of(length), sides, strict=True))
        tokens, inner = tokens_of(length), self.heads * head_size(self, width)
        filters = tokens * width * (self.kernel or 0) ** 2
        return float(width * inner * (3 * places + tokens) + 2 * inner * places * math.prod(sides) + filters)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
