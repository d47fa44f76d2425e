"""Attention among super tokens: tokens are softly assigned to the averages around them, and those attend.

Legend: B batch, H and W rows and columns of tokens, D width, M and N rows and columns of super tokens, C tokens of a cell,
K heads, P head_dim, A the 9 super tokens around a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_whole
from .recurrence import check_heads
from .spatial import as_grid, grid_of, rounded_up

__all__ = ["SuperTokenAttention", "SuperTokenMixer"]


class SuperTokenMixer(nn.Module):
    """Tokens of each cell look at the super tokens of their own and the 8 cells around: `Q = softmax(x s^T / sqrt(D))`,
    `s = Q^T x / sum of Q`, then attention among all s, and every token gets its share of the results, `Q attended`.

    The assignment takes no gradient, as in the authors' code; unlike there, super tokens outside the grid and tokens that
    fill up the last cells have no part in it.
    """

    def __init__(self, width: int, heads: int, head_dim: int, cell: int, iterations: int):
        super().__init__()
        self.heads, self.cell, self.iterations = heads, cell, iterations
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        rows, columns = x_BHWD.shape[1:3]
        sides = min(self.cell, rows), min(self.cell, columns)
        x_BMNCD = self.cells(x_BHWD, sides)
        valid_1MNC1 = self.cells(torch.ones_like(x_BHWD[:1, :, :, :1]), sides)
        q_BMNCA = self.assignment(x_BMNCD.detach(), valid_1MNC1)
        attended_BMND = self.attended(self.gathered(x_BMNCD, q_BMNCA))
        y_BMNCD = q_BMNCA @ around(attended_BMND)
        return self.grid(y_BMNCD, sides, rows, columns).reshape(x.shape)

    def cells(self, x_BHWD: Tensor, sides: tuple[int, int]) -> Tensor:
        """Cut into cells, zeros filling up the last: [B, M, N, C, D]."""
        batch, rows, columns, width = x_BHWD.shape
        down, across = -(-rows // sides[0]), -(-columns // sides[1])
        x_BHWD = F.pad(x_BHWD, (0, 0, 0, across * sides[1] - columns, 0, down * sides[0] - rows))
        cut = x_BHWD.view(batch, down, sides[0], across, sides[1], width)
        return cut.transpose(2, 3).reshape(batch, down, across, -1, width)

    def grid(self, y_BMNCD: Tensor, sides: tuple[int, int], rows: int, columns: int) -> Tensor:
        """Undo `cells`."""
        batch, down, across, _, width = y_BMNCD.shape
        laid = y_BMNCD.view(batch, down, across, *sides, width).transpose(2, 3)
        return laid.reshape(batch, down * sides[0], across * sides[1], width)[:, :rows, :columns]

    def assignment(self, x_BMNCD: Tensor, valid_1MNC1: Tensor) -> Tensor:
        """How much of every token each super token around it gets, zero for what fills up a cell."""
        q_BMNCA = self.shared_out(x_BMNCD, x_BMNCD.sum(3) / valid_1MNC1.sum(3), valid_1MNC1)
        for _ in range(self.iterations - 1):
            q_BMNCA = self.shared_out(x_BMNCD, self.gathered(x_BMNCD, q_BMNCA), valid_1MNC1)
        return q_BMNCA

    def shared_out(self, x_BMNCD: Tensor, s_BMND: Tensor, valid_1MNC1: Tensor) -> Tensor:
        """The same for given super tokens: [B, M, N, C, A]."""
        near_1MN1A = around(torch.ones_like(valid_1MNC1[:, :, :, 0])).transpose(3, 4)
        score_BMNCA = x_BMNCD @ around(s_BMND).transpose(3, 4) * x_BMNCD.shape[-1] ** -0.5
        q_BMNCA: Tensor = score_BMNCA.masked_fill(near_1MN1A == 0, -torch.inf).softmax(-1) * valid_1MNC1
        return q_BMNCA

    def gathered(self, x_BMNCD: Tensor, q_BMNCA: Tensor) -> Tensor:
        """Every super token as the mean of what is assigned to it: [B, M, N, D]."""
        sums_BMNAD = q_BMNCA.transpose(3, 4) @ F.pad(x_BMNCD, (0, 1), value=1.0)
        batch, down, across, _, columns = sums_BMNAD.shape
        laid = sums_BMNAD.permute(0, 4, 3, 1, 2).reshape(batch, columns * 9, down * across)
        total_BDMN = F.fold(laid, (down, across), 3, padding=1)
        return (total_BDMN[:, :-1] / (total_BDMN[:, -1:] + 1e-12)).permute(0, 2, 3, 1)

    def attended(self, s_BMND: Tensor) -> Tensor:
        """Softmax attention among all super tokens."""
        q, k, v = (project(s_BMND.flatten(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        y_BKSP = F.scaled_dot_product_attention(q, k, v)
        y_BSD: Tensor = self.out(y_BKSP.transpose(1, 2).flatten(2))
        return y_BSD.view(s_BMND.shape)


def around(s_BMND: Tensor) -> Tensor:
    """The 9 super tokens around each, zeros outside the grid: [B, M, N, A, D]."""
    batch, down, across, width = s_BMND.shape
    near = F.unfold(s_BMND.permute(0, 3, 1, 2), 3, padding=1).view(batch, width, 9, down, across)
    return near.permute(0, 3, 4, 2, 1)


@dataclass(frozen=True)
class SuperTokenAttention(Operator):
    """Vision Transformer with Super Token Sampling (Huang et al., 2022).

    cell: side of the squares of tokens that a super token starts as the average of; 1 makes every token one. iterations of
    assigning and averaging. head_dim defaults to width / heads. A sequence is a grid of one column.
    """

    heads: Any = 4
    cell: Any = 4
    iterations: Any = 1
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Vision Transformer with Super Token Sampling", 2022, systems=("S021",))

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        require_whole("cell", self.cell, where)
        require_whole("iterations", self.iterations, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, k, size = axis("width", width), axis("heads", self.heads), self._head_dim(width)
        keys, values = k * axis("key_dim", size), k * axis("value_dim", size)
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                "out.weight": param(d, values)}

    def build(self, width: int) -> nn.Module:
        return SuperTokenMixer(width, self.heads, self._head_dim(width), self.cell, self.iterations)

    def macs(self, width: int, length: Length) -> float:
        """Scores and averages of every place and 9 super tokens in each iteration, the way back, attention among super
        tokens and its projections."""
        sides = [max(min(self.cell, size), 1) for size in grid_of(length)]
        places = [rounded_up(size, side) for size, side in zip(grid_of(length), sides, strict=True)]
        tokens = places[0] * places[1]
        supers = tokens // (sides[0] * sides[1])
        shares = 9 * tokens * (self.iterations * (2 * width + 1) + width)
        return float(shares + supers * self.matrix_numel(width) + 2 * self.heads * self._head_dim(width) * supers**2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
