"""Attention from the tokens of each part of a sequence to those of the other parts.

Legend: B batch, T tokens, D width, H heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param
from ..operator import Operator, Source
from .checks import require_whole
from .windows import check_heads, head_size, projections

__all__ = ["CrossViewAttention", "OtherViews"]


class OtherViews(nn.Module):
    """`softmax(q_i . k_j / sqrt(P)) v_j` over the tokens j of other views than that of i.

    View n is what lies between n and n + 1 of `views` parts of the sequence, as equal as they can be. A sequence of one
    token has no other view, and reads itself.
    """

    def __init__(self, width: int, heads: int, head_dim: int, views: int):
        super().__init__()
        self.heads, self.head_dim, self.views = heads, head_dim, views
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        length = x_BTD.shape[1]
        view_T = torch.div(torch.arange(length, device=q.device) * self.views, length, rounding_mode="floor")
        is_own_TT = view_T[:, None] == view_T
        bias_TT = torch.zeros(length, length, dtype=q.dtype, device=q.device)
        bias_TT = bias_TT.masked_fill(is_own_TT, -torch.inf if length > 1 else 0.0)
        y_BHTP = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_TT)
        y_BTD: Tensor = self.out(y_BHTP.transpose(1, 2).flatten(2))
        return y_BTD


@dataclass(frozen=True)
class CrossViewAttention(Operator):
    """Unifying Flow, Stereo and Depth Estimation (Xu et al., 2022): cross-attention between the features of two images, both
    ways with the same weights.

    views: images, frames or other equal parts that follow one another in the sequence; a token reads those of all others.
    Attention inside a view is `WindowAttention(window=tokens of a view)`, or `Scanned`; both in turn make a siamese network.
    All pairs are computed and those of one view masked. head_dim defaults to width / heads. No positions.
    """

    heads: Any = 4
    views: Any = 2
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Unifying Flow, Stereo and Depth Estimation", 2022)

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("views", self.views, where, low=2, instead="use Attention(bidirectional=True) for one")

    def axes(self, width: int) -> dict[str, Param]:
        return projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        return OtherViews(width, self.heads, head_size(self, width), self.views)

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values of all pairs."""
        return float(length * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * length**2)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
