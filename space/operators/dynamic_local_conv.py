"""Filters that every token makes for its own neighbourhood.

Legend: B batch, H and W rows and columns of tokens, D width, R reduced width, K heads, P channels of a head, M taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .spatial import as_grid, require_odd
from .windows import blocks, gather_windows, seen_in_windows, split_heads

__all__ = ["DynamicFilters", "DynamicLocalConv"]


class DynamicFilters(nn.Module):
    """`out(sum over m of w[m] * input(x)[m])` per place, zeros outside the grid.

    Two matrices and a depthwise convolution over the same neighbourhood make `w`, kernel x kernel taps for each head.
    """

    def __init__(self, width: int, heads: int, reduced: int, kernel: int):
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.input = nn.Linear(width, width, bias=False)
        self.reduce = nn.Linear(width, reduced, bias=False)
        self.conv = GridFilters(reduced, kernel)
        self.taps = nn.Linear(reduced, heads * kernel * kernel, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u_BHWD = self.input(as_grid(x))
        _, height, width, _ = u_BHWD.shape
        taps_BHWK1M = self.taps(self.conv(self.reduce(u_BHWD))).unflatten(-1, (self.heads, 1, -1))
        rows_HA, columns_WA = (blocks(size, 1, self.kernel // 2, x.device) for size in (height, width))
        seen_HWKMP = seen_in_windows(height, width, rows_HA, columns_WA)[:, :, None, :, None]
        u_BHWKMP = split_heads(gather_windows(u_BHWD, rows_HA, columns_WA), self.heads)
        y_BHWD: Tensor = self.out((taps_BHWK1M @ (u_BHWKMP * seen_HWKMP)).squeeze(-2).flatten(-2))
        return y_BHWD.view(x.shape)


@dataclass(frozen=True)
class DynamicLocalConv(Operator):
    """The dynamic local self-attention (MHDLSA) of DLGSANet (Li et al., 2023).

    heads: filters per token; each serves width / heads channels. kernel: side of the filters, odd. reduction: the width over
    that of what makes them. The filters are neither normalised nor activated, as in the authors' code; they have no biases.
    A sequence is a grid of one column. Linear in tokens.
    """

    heads: Any = 6
    kernel: Any = 7
    reduction: Any = 4
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image "
                                      "Super-Resolution", 2023, options=("S244",))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_divisor("heads", self.heads, "width", width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("reduction", self.reduction, where)

    def _reduced(self, width: int) -> int:
        return int(max(width // self.reduction, 1))

    def axes(self, width: int) -> dict[str, Param]:
        d, reduced, heads = axis("width", width), axis("reduced", self._reduced(width)), axis("heads", self.heads)
        channels = heads * axis("channels", width // self.heads)
        taps = axis("tap_rows", self.kernel, "centre") * axis("tap_columns", self.kernel, "centre")
        return {"input.weight": param(channels, d), "reduce.weight": param(reduced, channels),
                "conv.taps": square_taps(reduced, self.kernel), "taps.weight": param(heads * taps, reduced),
                "out.weight": param(d, channels)}

    def build(self, width: int) -> nn.Module:
        return DynamicFilters(width, self.heads, self._reduced(width), self.kernel)

    def macs(self, width: int, length: Length) -> float:
        """Matrices, the filter that makes filters, and those, taps outside the grid included."""
        filters = (self._reduced(width) + width) * self.kernel**2
        return float(tokens_of(length) * (self.matrix_numel(width) + filters))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
