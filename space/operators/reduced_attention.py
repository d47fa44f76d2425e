"""Attention from every place of a grid to a smaller grid.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S tokens of the smaller grid, K heads,
P head_dim, R reduction.
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
from .checks import require_divisor, require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid, grid_of

__all__ = ["ReducedAttention", "SpatialReductionAttention"]


class SpatialReductionAttention(nn.Module):
    """Keys and values come from non-overlapping squares of R x R tokens, each projected to one token and normalised.

    A grid that R does not divide is filled up with zeros at its lower and right edge.
    """

    def __init__(self, width: int, heads: int, head_dim: int, reduction: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.squares = nn.Parameter(torch.empty(width, width, reduction, reduction)) if reduction > 1 else None
        self.norm = LayerNormalisation(width) if reduction > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BTD = x_BHWD.flatten(1, 2)
        smaller_BSD = x_BTD
        if self.squares is not None and self.norm is not None:
            smaller_BSD = self.norm(self.reduced(x_BHWD, self.squares))
        q, k, v = (project(tokens).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for project, tokens in (
            (self.query, x_BTD), (self.key, smaller_BSD), (self.value, smaller_BSD)))
        y_BKTP = F.scaled_dot_product_attention(q, k, v)
        y_BTD: Tensor = self.out(y_BKTP.transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)

    def reduced(self, x_BHWD: Tensor, squares: Tensor) -> Tensor:
        """One token per square: [B, S, D]."""
        side = squares.shape[-1]
        down, across = -x_BHWD.shape[1] % side, -x_BHWD.shape[2] % side
        x_BDHW = F.pad(x_BHWD.permute(0, 3, 1, 2), (0, across, 0, down))
        return F.conv2d(x_BDHW, squares, stride=side).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class ReducedAttention(Operator):
    """Pyramid Vision Transformer (Wang et al., 2021): spatial-reduction attention.

    reduction: side of the squares that become one key and value; 1 is attention over all tokens. head_dim defaults to
    width / heads. A sequence is a grid of one column.
    """

    heads: Any = 4
    reduction: Any = 2
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"square_rows": "a place in the square", "square_columns": "a place in the square"}
    source: ClassVar[Source] = Source("Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without "
                                      "Convolutions", 2021, options=("S211",))

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        """Without squares there is no norm that shifts."""
        return bool(self.reduction == 1)

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("reduction", self.reduction, where, instead="use 1 for attention over all tokens")
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        inner = axis("heads", self.heads) * axis("head_dim", self._head_dim(width))
        declared = {"query.weight": param(inner, d), "key.weight": param(inner, d), "value.weight": param(inner, d),
                    "out.weight": param(d, inner)}
        if self.reduction > 1:
            rows, columns = axis("square_rows", self.reduction), axis("square_columns", self.reduction)
            norm = {f"norm.{name}": part for name, part in LayerNorm().axes(width).items()}
            declared |= {"squares": param(d, d, rows, columns), **norm}
        return declared

    def build(self, width: int) -> nn.Module:
        return SpatialReductionAttention(width, self.heads, self._head_dim(width), self.reduction)

    def macs(self, width: int, length: Length) -> float:
        """Queries and outputs of all tokens, squares, keys and values of the smaller grid, and all pairs of the two."""
        tokens, (rows, columns) = tokens_of(length), grid_of(length)
        smaller = -(-rows // self.reduction) * -(-columns // self.reduction)
        inner = self.heads * self._head_dim(width)
        squares = (width * self.reduction) ** 2 if self.reduction > 1 else 0
        projections = 2 * width * inner * (tokens + smaller) + smaller * squares
        return float(projections + 2 * inner * tokens * smaller)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
