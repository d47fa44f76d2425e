"""Attention over all tokens of a grid, and a filter of the values beside it.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), K heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .depthwise_conv2d import filtered
from .spatial import as_grid, require_odd
from .windows import check_heads, head_size, projections

__all__ = ["AttentionAndFilter", "LocalValueAttention"]


class AttentionAndFilter(nn.Module):
    """`out(attention(q, k, v) + filter(v))`, the same filters for every head."""

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.taps = nn.Parameter(torch.empty(head_dim, kernel, kernel))
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        q, k, v = (project(x_BHWD).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        q_BKTP, k_BKTP, v_BKTP = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
        y_BTKP = F.scaled_dot_product_attention(q_BKTP, k_BKTP, v_BKTP).transpose(1, 2)
        near = filtered(v.permute(0, 3, 1, 2, 4).flatten(0, 1), self.taps)
        near = torch.unflatten(near, 0, (-1, self.heads))                                        # [B, K, H, W, P]
        y_BTD: Tensor = self.out((y_BTKP + near.permute(0, 2, 3, 1, 4).flatten(1, 2)).flatten(2))
        return y_BTD.view(x.shape)


@dataclass(frozen=True)
class LocalValueAttention(Operator):
    """The attention of ResFormer (Tian et al., 2023): filters of the values, which start at zero, are a local position that
    suits every resolution.

    kernel: side of the filters, odd; 3 in the paper. head_dim defaults to width / heads. With
    `PatchEmbedding(position="conv", grid=True)` it is that network; training on several resolutions of every image at once,
    and that they agree, is not here. Neither matrices nor filters have biases. A sequence is a grid of one column.
    """

    heads: Any = 4
    kernel: Any = 3
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("ResFormer: Scaling ViTs with Multi-Resolution Training", 2023, options=("S266",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        size = head_size(self, width)
        taps = param(axis("head_dim", size), axis("tap_rows", self.kernel, "centre"),
                     axis("tap_columns", self.kernel, "centre"), init="zeros")
        return {**projections(width, self.heads, size), "taps": taps}

    def build(self, width: int) -> nn.Module:
        return AttentionAndFilter(width, self.heads, head_size(self, width), self.kernel)

    def macs(self, width: int, length: Length) -> float:
        """Matrices and filters of all tokens, and all pairs of them."""
        tokens, inner = tokens_of(length), self.heads * head_size(self, width)
        return float(tokens * inner * (4 * width + self.kernel**2 + 2 * tokens))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
