"""Linear attention with ReLU features on a grid, whole or in windows, and a filter of the values beside it.

Legend: B batch, H and W rows and columns of tokens, D width, N windows of all images, R and C rows and columns of a window,
T tokens of a window, K heads, P key_dim, V value_dim, E any features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import square_taps
from .heads import projections_of
from .spatial import as_grid, grid_of, require_odd, rounded_up
from .windows import check_heads, head_size

__all__ = ["ReluAttention", "SimplifiedLinearAttention"]


class ReluAttention(nn.Module):
    """`relu(q) (relu(k + place)^T v) / relu(q) sum relu(k + place)` and a filter of v, per head and window, then `out`.

    All heads share the filter. Places that fill up the last windows are read by nobody; where windows are shifted, those cut
    by the border hold what lies at both ends.
    """

    def __init__(self, width: int, heads: int, head_dim: int, window: int | None, shift: bool, kernel: int, side: int):
        super().__init__()
        self.heads, self.window, self.shift, self.side = heads, window, shift, side
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.place = nn.Parameter(torch.empty(side, side, heads * head_dim))
        self.taps = nn.Parameter(torch.empty(head_dim, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        _, height, width, _ = x_BHWD.shape
        sides = (height, width) if self.window is None else (min(self.window, height), min(self.window, width))
        shifts = tuple(side // 2 if self.shift and side < size else 0
                       for side, size in zip(sides, (height, width), strict=True))
        q, k, v = (self.cut(project(x_BHWD), sides, shifts) for project in (self.query, self.key, self.value))
        k = F.relu(k + self.places(sides))
        if height % sides[0] or width % sides[1]:
            k = k * self.cut(torch.ones_like(x_BHWD[..., :1]), sides, shifts)
        y_NRCE = self.attend(F.relu(q), k, v) + self.filtered(v)
        y: Tensor = self.out(self.laid(y_NRCE, height, width, shifts))
        return y.view(x.shape)

    def attend(self, q_NRCE: Tensor, k_NRCE: Tensor, v_NRCE: Tensor) -> Tensor:
        """Sums over a window's keys, in float32 at least."""
        dtype = torch.promote_types(q_NRCE.dtype, torch.float32)
        q_NKTP, k_NKTP, v_NKTV = (torch.unflatten(part.flatten(1, 2), -1, (self.heads, -1)).transpose(1, 2).to(dtype)
                                  for part in (q_NRCE, k_NRCE, v_NRCE))
        memory_NKPV = k_NKTP.transpose(2, 3) @ v_NKTV
        weight_NKT1 = (q_NKTP * k_NKTP.sum(2, keepdim=True)).sum(-1, keepdim=True)
        y_NKTV = q_NKTP @ memory_NKPV / (weight_NKT1 + 1e-6)
        return y_NKTV.transpose(1, 2).flatten(2).view(v_NRCE.shape).to(v_NRCE.dtype)  # type: ignore[no-any-return]

    def filtered(self, v_NRCE: Tensor) -> Tensor:
        """One filter per entry of a head, zeros around every window."""
        v_NRCKV = torch.unflatten(v_NRCE, -1, (self.heads, -1))
        v_MVRC = v_NRCKV.permute(0, 3, 4, 1, 2).flatten(0, 1)
        y_MVRC = F.conv2d(v_MVRC, self.taps[:, None], self.bias, padding=self.taps.shape[-1] // 2, groups=len(self.taps))
        return torch.unflatten(y_MVRC, 0, (-1, self.heads)).permute(0, 3, 4, 1, 2).flatten(3)  # type: ignore[no-any-return]

    def places(self, sides: tuple[int, int]) -> Tensor:
        """What is added to the keys at every place of a window; beyond its side the table repeats."""
        row_R, column_C = (torch.arange(size, device=self.place.device) % self.side for size in sides)
        return self.place[row_R][:, column_C]

    def cut(self, x_BHWE: Tensor, sides: tuple[int, int], shifts: tuple[int, ...]) -> Tensor:
        """Windows side by side, filled up with zeros: [N, R, C, E]."""
        batch, height, width, _ = x_BHWE.shape
        down, across = rounded_up(height, sides[0]), rounded_up(width, sides[1])
        x_BHWE = F.pad(x_BHWE, (0, 0, 0, across - width, 0, down - height))
        if any(shifts):
            x_BHWE = x_BHWE.roll((-shifts[0], -shifts[1]), (1, 2))
        cut = x_BHWE.reshape(batch, down // sides[0], sides[0], across // sides[1], sides[1], x_BHWE.shape[-1])
        return cut.transpose(2, 3).reshape(-1, *sides, x_BHWE.shape[-1])

    def laid(self, y_NRCE: Tensor, height: int, width: int, shifts: tuple[int, ...]) -> Tensor:
        """Undo `cut`: [B, H, W, E]."""
        _, rows, columns, size = y_NRCE.shape
        down, across = rounded_up(height, rows), rounded_up(width, columns)
        y_BHWE = y_NRCE.reshape(-1, down // rows, across // columns, rows, columns, size).transpose(2, 3).reshape(
            -1, down, across, size)
        if any(shifts):
            y_BHWE = y_BHWE.roll((shifts[0], shifts[1]), (1, 2))
        return y_BHWE[:, :height, :width]


@dataclass(frozen=True)
class SimplifiedLinearAttention(Operator):
    """SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization (Guo
    et al., 2024): ReLU in place of the softmax, and a filter of the values.

    window: side of square windows; None for the whole grid. shift: windows half a window further on, which wrap around, as
    in the authors' code. kernel: side of the filter, odd, the same for all heads. side: of the table of places, which are
    added to the keys and repeat beyond it; give it the window, or the grid. head_dim defaults to width / heads. A sequence is
    a grid of one column.
    """

    heads: Any = 4
    window: Any = None
    shift: Any = False
    kernel: Any = 5
    side: Any = 14
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"place_rows": "an entry is a row", "place_columns": "an entry is a column"}
    source: ClassVar[Source] = Source("SLAB: Efficient Transformers with Simplified Linear Attention and Progressive "
                                      "Re-parameterized Batch Normalization", 2024, options=("S204",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("side", self.side, where)
        if self.window is not None:
            require_whole("window", self.window, where, instead="use 7, or None for the whole grid")
        if self.shift and self.window is None:
            raise ValueError(f"only windows are shifted at {where}: got shift=True with window=None; use window=7")

    def axes(self, width: int) -> dict[str, Param]:
        size, h = head_size(self, width), axis("heads", self.heads)
        keys, value = h * axis("key_dim", size), axis("value_dim", size)
        sides = (axis("place_rows", self.side), axis("place_columns", self.side))
        return {**projections_of(axis("width", width), keys, h * value), "place": param(*sides, keys, init="zeros"),
                "taps": square_taps(value, self.kernel), "bias": param(value, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return ReluAttention(width, self.heads, head_size(self, width), self.window, bool(self.shift), self.kernel, self.side)

    def macs(self, width: int, length: Length) -> float:
        """Projections, the sums over keys and what they give, and the filter, at places that fill up windows as well."""
        sizes, inner = grid_of(length), self.heads * head_size(self, width)
        sides = sizes if self.window is None else tuple(max(min(self.window, size), 1) for size in sizes)
        places = rounded_up(sizes[0], sides[0]) * rounded_up(sizes[1], sides[1])
        own = places * inner * (2 * head_size(self, width) + self.kernel**2)
        return float(4 * width * inner * tokens_of(length) + own)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
