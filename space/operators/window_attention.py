"""Attention inside square windows of a grid, with a learned bias per relative position.

Legend: B batch, H and W rows and columns of tokens, D width, C windows, N places of one window, K heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_whole
from .spatial import as_grid, grid_of, rounded_up

__all__ = ["ShiftedWindowAttention", "WindowAttention"]


def line_of_windows(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which window every place of one dimension belongs to, [padded size]: those `shift` steps on, -2 for padding."""
    place = torch.arange(rounded_up(size, window), device=device)
    number = torch.div(place - shift, window, rounding_mode="floor")
    return torch.where(place < size, number, -2)


class ShiftedWindowAttention(nn.Module):
    """Tokens attend to the tokens of their own window.

    With `shift` the windows lie half a window further on, cut off where the grid ends; they are laid out by a cyclic
    shift and a mask, so there are no more of them than without. A window no grid fills shrinks to the grid's side and
    does not shift. Rows and columns that fill up the last windows are seen by nobody.
    """

    def __init__(self, width: int, heads: int, head_dim: int, window: int, shift: bool):
        super().__init__()
        self.heads, self.head_dim, self.window, self.shift = heads, head_dim, window, shift
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.bias = nn.Parameter(torch.empty(2 * window - 1, 2 * window - 1, heads))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        batch, rows, columns, _ = x_BHWD.shape
        sides = min(self.window, rows), min(self.window, columns)
        shifts = tuple(side // 2 if self.shift and side < size else 0
                       for side, size in zip(sides, (rows, columns), strict=True))
        q, k, v = (self.windows(project(x_BHWD), sides, shifts) for project in (self.query, self.key, self.value))
        mask = self.mask(rows, columns, sides, shifts, batch, x.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        y_BHWE = self.grid(y, rows, columns, sides, shifts)
        y_BHWD: Tensor = self.out(y_BHWE)
        return y_BHWD.view(x.shape)

    def windows(self, x_BHWE: Tensor, sides: tuple[int, int], shifts: tuple[int, ...]) -> Tensor:
        """Cut into windows: [B * C, K, N, P]."""
        batch, rows, columns, _ = x_BHWE.shape
        down, across = rounded_up(rows, sides[0]), rounded_up(columns, sides[1])
        x_BHWE = F.pad(x_BHWE, (0, 0, 0, across - columns, 0, down - rows))
        if any(shifts):
            x_BHWE = x_BHWE.roll((-shifts[0], -shifts[1]), (1, 2))
        cut = x_BHWE.view(batch, down // sides[0], sides[0], across // sides[1], sides[1], self.heads, self.head_dim)
        return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.heads, sides[0] * sides[1], self.head_dim)

    def grid(self, y: Tensor, rows: int, columns: int, sides: tuple[int, int], shifts: tuple[int, ...]) -> Tensor:
        """Undo `windows`: [B, H, W, K * P]."""
        down, across = rounded_up(rows, sides[0]), rounded_up(columns, sides[1])
        laid = y.view(-1, down // sides[0], across // sides[1], self.heads, *sides, self.head_dim)
        y_BHWE = laid.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, down, across, self.heads * self.head_dim)
        if any(shifts):
            y_BHWE = y_BHWE.roll((shifts[0], shifts[1]), (1, 2))
        return y_BHWE[:, :rows, :columns]

    def mask(self, rows: int, columns: int, sides: tuple[int, int], shifts: tuple[int, ...], batch: int,
             device: torch.device) -> Tensor:
        """The bias of every pair of places, minus infinity where a window's two places do not see each other."""
        bias_1KNN = self.offsets(sides, device)[None]
        if not any(shifts) and rows % sides[0] == 0 and columns % sides[1] == 0:
            return bias_1KNN
        row_H = line_of_windows(rows, sides[0], shifts[0], device).roll(-shifts[0])
        column_W = line_of_windows(columns, sides[1], shifts[1], device).roll(-shifts[1])
        row_CN, column_CN = (part.reshape(-1, sides[0] * sides[1]) for part in (
            row_H.view(-1, 1, sides[0], 1).expand(-1, len(column_W) // sides[1], -1, sides[1]),
            column_W.view(1, -1, 1, sides[1]).expand(len(row_H) // sides[0], -1, sides[0], -1)))
        apart_CNN = (row_CN[:, :, None] != row_CN[:, None]) | (column_CN[:, :, None] != column_CN[:, None])
        return bias_1KNN.masked_fill(apart_CNN[:, None], -torch.inf).repeat(batch, 1, 1, 1)

    def offsets(self, sides: tuple[int, int], device: torch.device) -> Tensor:
        """The bias of each pair of places in one window, [K, N, N], from the middle of the table."""
        row_N, column_N = (index.flatten() for index in torch.meshgrid(
            torch.arange(sides[0], device=device), torch.arange(sides[1], device=device), indexing="ij"))
        centre = self.bias.shape[0] // 2
        bias_NNK = self.bias[row_N[:, None] - row_N + centre, column_N[:, None] - column_N + centre]
        return bias_NNK.permute(2, 0, 1)


@dataclass(frozen=True)
class WindowAttention(Operator):
    """Swin Transformer (Liu et al., 2021): attention inside windows, with a bias per relative position.

    window: side of the square windows; 2 * window - 1 offsets each way have a bias per head, and a smaller window's
    table is the middle of a larger one's. shift: windows half a window further on; layers alternate. head_dim defaults
    to width / heads. A sequence is a grid of one column. A grid that is no multiple of the window is filled up, and
    what fills it is not seen.
    """

    heads: Any = 4
    window: Any = 7
    shift: Any = False
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021,
                                      systems=("S009",))

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("window", self.window, where)
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, k = axis("width", width), axis("heads", self.heads)
        inner = k * axis("head_dim", self._head_dim(width))
        offsets = (axis(f"offset_{way}", 2 * self.window - 1, "centre") for way in ("rows", "columns"))
        return {"query.weight": param(inner, d), "key.weight": param(inner, d), "value.weight": param(inner, d),
                "out.weight": param(d, inner), "bias": param(*offsets, k, init=Init("normal", gain=0.02))}

    def build(self, width: int) -> nn.Module:
        return ShiftedWindowAttention(width, self.heads, self._head_dim(width), self.window, bool(self.shift))

    def macs(self, width: int, length: Length) -> float:
        """Projections of the tokens, plus scores and values of all pairs in all windows, filled-up places included."""
        sides = [max(min(self.window, size), 1) for size in grid_of(length)]
        places = [rounded_up(size, side) for size, side in zip(grid_of(length), sides, strict=True)]
        pairs = places[0] * places[1] * sides[0] * sides[1]
        return float(tokens_of(length) * self.matrix_numel(width) + 2 * self.heads * self._head_dim(width) * pairs)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
