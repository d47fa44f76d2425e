"""Attention on a grid whose heads start as the taps of a convolution and may learn to look elsewhere.

Legend: B batch, T tokens of the grid, D width, K heads, P head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .heads import projections_of
from .spatial import as_grid
from .windows import check_heads, head_size

__all__ = ["GatedPositionalAttention", "PositionalAttention", "grid_offsets"]


def grid_offsets(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """How many rows and columns each key is after each query, both [T, T], row by row."""
    row_T = torch.arange(rows, device=like.device, dtype=like.dtype).repeat_interleave(columns)
    column_T = torch.arange(columns, device=like.device, dtype=like.dtype).repeat(rows)
    return row_T - row_T[:, None], column_T - column_T[:, None]


class GatedPositionalAttention(nn.Module):
    """`(1 - g) softmax(q.k / sqrt(P)) + g softmax(w . (rows, columns, distance squared))` per head, g a learned gate.

    w starts at strength * (2 a, 2 b, -1), which looks at the key a rows and b columns away, the heads' (a, b) filling a
    square; what is learned is its change. Heads beyond the square look at the token itself.
    """

    def __init__(self, width: int, heads: int, head_dim: int, strength: float):
        super().__init__()
        self.heads, self.head_dim, self.strength = heads, head_dim, strength
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.place = nn.Parameter(torch.empty(heads, 3))
        self.gate = nn.Parameter(torch.empty(heads))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BTD = x_BHWD.flatten(1, 2)
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        content_BKTT = torch.softmax(torch.matmul(q, k.mT) * self.head_dim**-0.5, -1)
        gate_K11 = torch.sigmoid(self.gate)[:, None, None]
        weight_BKTT = (1 - gate_K11) * content_BKTT + gate_K11 * self.places(x_BHWD.shape[1], x_BHWD.shape[2], x)
        y_BTD: Tensor = self.out(torch.matmul(weight_BKTT, v).transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)

    def places(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Weights by position alone, [K, T, T]; finite in half precision, whose squares are not."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        row_TT, column_TT = grid_offsets(rows, columns, like.to(dtype))
        start = torch.tensor([[2 * a, 2 * b, -1.0] for a, b in self.centres()], dtype=dtype, device=like.device)
        w_K3 = self.strength * start + self.place.to(dtype)
        terms = (row_TT, column_TT, row_TT.square() + column_TT.square())
        row_KTT, column_KTT, far_KTT = (w_K[:, None, None] * term for w_K, term in zip(w_K3.unbind(-1), terms, strict=True))
        return torch.softmax(row_KTT + column_KTT + far_KTT, -1).to(like.dtype)

    def centres(self) -> list[tuple[float, float]]:
        """(rows, columns) away from the token that each head starts at."""
        side = int(self.heads**0.5)
        middle = (side - 1) / 2 if side % 2 == 0 else side // 2
        square = [(a - middle, b - middle) for a in range(side) for b in range(side)]
        return square + [(0.0, 0.0)] * (self.heads - len(square))


@dataclass(frozen=True)
class PositionalAttention(Operator):
    """Gated positional self-attention of ConViT (d'Ascoli et al., 2021); ConViT has it in the first ten of twelve layers
    and `Attention(bidirectional=True)` after them.

    strength: how sharply a head looks at its place at the start. head_dim defaults to width / heads; a square number of
    heads starts as a convolution. A sequence is a grid of one column.
    """

    heads: Any = 4
    strength: Any = 1.0
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"heads": "a head starts at its place", "offsets": "rows, columns, their squares"}
    source: ClassVar[Source] = Source("ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
                                      2021, systems=("S402",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        if isinstance(self.strength, bool) or not self.strength >= 0:
            raise ValueError(f"strength must be a number of at least 0 at {where}: got {self.strength!r}; use 1.0")

    def axes(self, width: int) -> dict[str, Param]:
        k = axis("heads", self.heads)
        inner = k * axis("head_dim", head_size(self, width))
        return {**projections_of(axis("width", width), k * axis("key_dim", head_size(self, width)), inner),
                "place": param(k, axis("offsets", 3), init="zeros"), "gate": param(k, init="ones")}

    def build(self, width: int) -> nn.Module:
        return GatedPositionalAttention(width, self.heads, head_size(self, width), float(self.strength))

    def macs(self, width: int, length: Length) -> float:
        """Projections, plus scores and values of all pairs."""
        tokens = tokens_of(length)
        return float(tokens * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * tokens**2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
