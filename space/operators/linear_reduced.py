"""Attention from every place of a grid to a grid of one fixed size.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S tokens of the fixed grid, K heads,
P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid
from .windows import check_heads, head_size, projections

__all__ = ["FixedGridAttention", "LinearReducedAttention"]


class FixedGridAttention(nn.Module):
    """Keys and values come from `gelu(norm(mix(average)))`, the average being over the parts that share the grid evenly."""

    def __init__(self, width: int, heads: int, head_dim: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = LayerNormalisation(width)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        average_BDHW = F.adaptive_avg_pool2d(x_BHWD.permute(0, 3, 1, 2), self.side)
        small_BSD = F.gelu(self.norm(self.mix(average_BDHW.flatten(2).transpose(1, 2))))
        q, k, v = (project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, tokens in (
            (self.query, x_BHWD.flatten(1, 2)), (self.key, small_BSD), (self.value, small_BSD)))
        y_BTD: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)


@dataclass(frozen=True)
class LinearReducedAttention(Operator):
    """PVT v2 (Wang et al., 2021): linear spatial-reduction attention.

    side: of the grid that keys and values are averaged to, 7 in the paper: of place i along a dimension of n the entries
    floor(i n / side) to ceil((i + 1) n / side). A grid smaller than that gives entries more than once. head_dim defaults to
    width / heads. Matrices have no biases. A sequence is a grid of one column.
    """

    heads: Any = 4
    side: Any = 7
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("PVT v2: Improved Baselines with Pyramid Vision Transformer", 2021,
                                      options=("S211",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("side", self.side, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        norm = {f"norm.{name}": part for name, part in LayerNorm().axes(width).items()}
        return {**projections(width, self.heads, head_size(self, width)), "mix.weight": param(d, d), **norm}

    def build(self, width: int) -> nn.Module:
        return FixedGridAttention(width, self.heads, head_size(self, width), self.side)

    def macs(self, width: int, length: Length) -> float:
        """Queries and outputs of all tokens, keys and values of the fixed grid, and all pairs of the two."""
        tokens, small, inner = tokens_of(length), self.side**2, self.heads * head_size(self, width)
        return float(2 * width * inner * (tokens + small) + small * width**2 + 2 * inner * tokens * small)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
