"""Attention from every place of a grid to the means of squares of it.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S squares, K heads, P head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, batch_norm_axes
from .checks import require_whole
from .pooling import mean_pooled
from .spatial import as_grid, grid_of
from .windows import check_heads, head_size, projections

__all__ = ["AttendedMeans", "PooledAttention"]


class AttendedMeans(nn.Module):
    """Keys and values come from the mean of every square, batch-normalised; those at the edge may be smaller."""

    def __init__(self, width: int, heads: int, head_dim: int, reduction: int):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.norm = BatchNormalisation(width) if reduction > 1 else None
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BTD = smaller_BSD = x_BHWD.flatten(1, 2)
        if self.norm is not None:
            smaller_BSD = self.norm(mean_pooled(x_BHWD, self.reduction).flatten(1, 2))
        q, k, v = (project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, tokens in (
            (self.query, x_BTD), (self.key, smaller_BSD), (self.value, smaller_BSD)))
        y_BTD: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)


@dataclass(frozen=True)
class PooledAttention(Operator):
    """Efficient multi-head self-attention of Next-ViT (Li et al., 2022).

    reduction: side of the squares of tokens that become one key and value; 1 is attention over all tokens. head_dim defaults
    to width / heads. The squares are the paper's; the authors' code takes the mean of reduction^2 tokens that follow one
    another row by row. Matrices have no biases. A sequence is a grid of one column.
    """

    heads: Any = 4
    reduction: Any = 2
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic "
                                      "Industrial Scenarios", 2022, options=("S264",))

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        """Without squares there is no norm that shifts."""
        return bool(self.reduction == 1)

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("reduction", self.reduction, where, instead="use 1 for attention over all tokens")

    def axes(self, width: int) -> dict[str, Param]:
        norm = batch_norm_axes("norm", axis("width", width)) if self.reduction > 1 else {}
        return {**projections(width, self.heads, head_size(self, width)), **norm}

    def build(self, width: int) -> nn.Module:
        return AttendedMeans(width, self.heads, head_size(self, width), self.reduction)

    def macs(self, width: int, length: Length) -> float:
        """Queries and outputs of all tokens, keys and values of the squares, and all pairs of the two."""
        tokens, inner = tokens_of(length), self.heads * head_size(self, width)
        smaller = math.prod(-(-size // self.reduction) for size in grid_of(length))
        return float(2 * width * inner * (tokens + smaller) + 2 * inner * tokens * smaller)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
