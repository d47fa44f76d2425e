"""Attention of all tokens to a few representatives, found by one strided filter applied again and again.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S representatives, K heads, P head_dim of
queries and keys, V of values, I all heads of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .layernorm import LayerNorm, LayerNormalisation
from .short_conv import tap_init
from .spatial import as_grid, grid_of

__all__ = ["RecursiveAttention", "RecursiveGeneralisation", "representatives"]


def representatives(sides: tuple[int, int], stride: int, most: int) -> list[tuple[int, int]]:
    """The sizes a grid passes through while it has at least `most` places along a side."""
    sizes = [sides]
    while max(sizes[-1]) >= most:
        sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
    return sizes


class RecursiveGeneralisation(nn.Module):
    """A strided depthwise filter, the same each time, shrinks the grid until both sides are below `most`; a filter, a matrix,
    a norm and GELU make keys and values of it. Values get what a filter over their own grid adds."""

    def __init__(self, width: int, heads: int, head_dim: int, stride: int, most: int):
        super().__init__()
        self.heads, self.stride, self.most = heads, stride, most
        self.shrink = nn.Parameter(torch.empty(width, stride, stride))
        self.local = GridFilters(width, 3)
        self.mix = nn.Linear(width, heads * head_dim, bias=False)
        self.norm = LayerNormalisation(heads * head_dim)
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(heads * head_dim, heads * head_dim, bias=False)
        self.value = nn.Linear(heads * head_dim, width, bias=False)
        self.position = GridFilters(width, 3)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        smaller_BHWI = F.gelu(self.norm(self.mix(self.local(self.shrunk(x_BHWD)))))
        value_BHWD = self.value(smaller_BHWI)
        value_BHWD = value_BHWD + self.position(value_BHWD)
        q, k, v = (part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in (self.query(x_BHWD), self.key(smaller_BHWI), value_BHWD))
        y_BKTV = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        y_BTD: Tensor = self.out(y_BKTV.transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)

    def shrunk(self, x_BHWD: Tensor) -> Tensor:
        """Filtered as often as it takes; what does not fill a window is filled up with zeros."""
        x_BDHW = x_BHWD.permute(0, 3, 1, 2)
        while max(x_BDHW.shape[2:]) >= self.most:
            down, across = (-size % self.stride for size in x_BDHW.shape[2:])
            x_BDHW = F.conv2d(F.pad(x_BDHW, (0, across, 0, down)), self.shrink[:, None], stride=self.stride,
                              groups=x_BDHW.shape[1])
        return x_BDHW.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class RecursiveAttention(Operator):
    """The recursive-generalisation attention of RGT (Chen et al., 2024), linear in tokens.

    ratio: width of queries and keys over the width (c_r). stride: of the filter that is applied again and again. most: it is
    as long as a side has that many places; with the paper's 4 and 16 there remain 4 to 15. Matrices and filters have no
    biases. A sequence is a grid of one column.
    """

    heads: Any = 4
    ratio: Any = 0.5
    stride: Any = 4
    most: Any = 16
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Recursive Generalization Transformer for Image Super-Resolution", 2024,
                                      options=("S299",))

    def _head_dim(self, width: int) -> int:
        return int(max(round(self.ratio * width / self.heads), 1))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_divisor("heads", self.heads, "width", width, where)
        require_whole("stride", self.stride, where, low=2)
        require_whole("most", self.most, where, low=2, instead="a grid of one place shrinks no further")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)) or not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio must be a positive number at {where}: got {self.ratio!r}; it is the width of keys over "
                             "that of the stream, such as 0.5")

    def axes(self, width: int) -> dict[str, Param]:
        d, heads, head_dim = axis("width", width), axis("heads", self.heads), axis("head_dim", self._head_dim(width))
        mixed = axis("mixed", self.heads * head_dim.size)
        values = heads * axis("value_dim", width // self.heads)
        rows, columns = axis("shrink_rows", self.stride, "centre"), axis("shrink_columns", self.stride, "centre")
        return {"shrink": param(d, rows, columns, init=tap_init(self.stride**2)), "local.taps": square_taps(d, 3),
                "mix.weight": param(mixed, d), **{f"norm.{name}": renamed(part, "width", mixed)
                                                  for name, part in LayerNorm().axes(mixed.size).items()},
                "query.weight": param(heads * head_dim, d), "key.weight": param(heads * head_dim, mixed),
                "value.weight": param(values, mixed), "position.taps": square_taps(values, 3), "out.weight": param(d, values)}

    def build(self, width: int) -> nn.Module:
        return RecursiveGeneralisation(width, self.heads, self._head_dim(width), self.stride, self.most)

    def macs(self, width: int, length: Length) -> float:
        """Queries and outputs of all tokens, filters of every size, keys and values of the last, and all pairs with it."""
        tokens, inner = tokens_of(length), self.heads * self._head_dim(width)
        _, *smaller = map(math.prod, representatives(grid_of(length), self.stride, self.most))
        last = smaller[-1] if smaller else tokens
        filters = sum(smaller) * width * self.stride**2 + 2 * 9 * width * last
        return float(tokens * width * (inner + width) + filters + last * inner * (2 * width + inner)
                     + tokens * last * (inner + width))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
