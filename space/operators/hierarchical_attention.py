"""Attention over a tree of the tokens, with one weight for every pair of siblings.

Legend: B batch, T tokens, H heads, P head_dim, N nodes of a level, G groups of siblings, F siblings (fan-out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param
from ..operator import Operator, Source
from .checks import require_whole
from .gathered import cut
from .spatial import rounded_up
from .windows import check_heads, head_size, projections

__all__ = ["HierarchicalAttention", "TreeAttention"]


class TreeAttention(nn.Module):
    """Of all distributions in which every token under a node A gives every token under its sibling B one weight, that with
    the smallest divergence from softmax attention, `sum over tokens of KL(tied, softmax)`.

    From the leaves up: `z_A = e_A + sum over siblings B of |B| exp(mean q_A . mean k_B)`, where `log e_A` is what stays
    inside A: the score of a leaf with itself, the mean of its children's `log z`, by tokens. A token keeps e_A / z_A of what
    it found below and gets the siblings' mean values for the rest.
    """

    def __init__(self, width: int, heads: int, head_dim: int, fan_out: int):
        super().__init__()
        self.heads, self.fan_out = heads, fan_out
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        q = q / math.sqrt(q.shape[-1])
        inside_BHN1, count_11N1 = (q * k).sum(-1, keepdim=True), torch.ones_like(q[:1, :1, :, :1])
        place_T, y_BHTP = torch.arange(q.shape[2], device=q.device), v
        while q.shape[2] > 1:
            kept_BHN1, found_BHNP, total_BHN1 = self.level(q, k, v, inside_BHN1, count_11N1)
            y_BHTP = kept_BHN1[:, :, place_T] * y_BHTP + found_BHNP[:, :, place_T]
            q, k, v, inside_BHN1 = (self.merged(part, count_11N1) for part in (q, k, v, total_BHN1))
            count_11N1 = cut(count_11N1, self.fan_out).sum(3)
            place_T = torch.div(place_T, self.fan_out, rounding_mode="floor")
        y_BTD: Tensor = self.out(y_BHTP.transpose(1, 2).flatten(2))
        return y_BTD

    def level(self, q: Tensor, k: Tensor, v: Tensor, inside: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every node: the part kept, what its siblings give it, and log z."""
        q_BHGFP, k_BHGFP, v_BHGFP, inside_BHGF1, count_11GF1 = (cut(part, self.fan_out)
                                                                for part in (q, k, v, inside, count))
        logits_BHGFF = q_BHGFP @ k_BHGFP.transpose(3, 4) + count_11GF1.log().transpose(3, 4)
        is_itself_FF = torch.eye(self.fan_out, dtype=torch.bool, device=q.device)
        logits_BHGFF = torch.where(is_itself_FF, inside_BHGF1, logits_BHGFF)
        weights_BHGFF = logits_BHGFF.softmax(-1)
        kept_BHGF1 = (weights_BHGFF * is_itself_FF).sum(-1, keepdim=True)
        found_BHGFP = weights_BHGFF.masked_fill(is_itself_FF, 0.0) @ v_BHGFP
        total_BHGF1 = logits_BHGFF.logsumexp(-1, keepdim=True)
        return kept_BHGF1.flatten(2, 3), found_BHGFP.flatten(2, 3), total_BHGF1.flatten(2, 3)[:, :, :q.shape[2]]

    def merged(self, x_BHNE: Tensor, count_11N1: Tensor) -> Tensor:
        """The mean of siblings, by tokens."""
        x_BHNE = cut(x_BHNE * count_11N1, self.fan_out).sum(3)
        return x_BHNE / cut(count_11N1, self.fan_out).sum(3)


@dataclass(frozen=True)
class HierarchicalAttention(Operator):
    """Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale Problems (Amizadeh et al., 2025).

    fan_out: children of a node; neighbouring tokens are siblings, groups of `fan_out` neighbouring nodes too, up to one root.
    With a fan-out of at least the length this is softmax attention; for any other it is the closest one with its weights
    tied, so that it can take the place of `Attention(bidirectional=True, rotary=False)` with its weights. head_dim defaults
    to width / heads. Linear in the length. Both ways: a node's mean query joins all its tokens. Trees of the paper may have
    any shape, and other position scores; here the sequence alone makes the tree.
    """

    heads: Any = 4
    fan_out: Any = 8
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale "
                                      "Problems", 2025, systems=("S005",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("fan_out", self.fan_out, where, low=2, instead="use 8")

    def axes(self, width: int) -> dict[str, Param]:
        return projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        return TreeAttention(width, self.heads, head_size(self, width), self.fan_out)

    def macs(self, width: int, length: int) -> float:
        """Projections, and all pairs of siblings on every level, absent ones included."""
        pairs, nodes = 0, length
        while nodes > 1:
            pairs += rounded_up(nodes, self.fan_out) * self.fan_out
            nodes = -(-nodes // self.fan_out)
        return float(length * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * pairs)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
