"""Attention read as a graph: its weights are edges, and every head updates its tokens as a graph isomorphism network does.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, R queries per key, P head_dim,
F hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .causal_attention import CausalAttention, attend, visible
from .heads import projections_of, require_even
from .mlp import check_ratio
from .windows import check_heads, head_size

__all__ = ["GINAttention", "IsomorphicAttention"]


class IsomorphicAttention(CausalAttention):
    """`down_h(silu(up_h((1 + e_h) v_i + sum over j of A_ij v_j)))` per head, v the values of the tokens.

    With a threshold an edge weighs what it has beyond it, and weaker edges are cut: A = relu(softmax - threshold).
    """

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, threshold: float | None = None,
                 rotary: bool = True):
        super().__init__(width, heads, heads, head_dim, rotary=rotary)
        self.threshold = threshold
        self.epsilon = nn.Parameter(torch.empty(heads))
        self.up = nn.Parameter(torch.empty(heads, hidden, head_dim))
        self.down = nn.Parameter(torch.empty(heads, head_dim, hidden))

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        own_BTHP = v_BSGP[:, v_BSGP.shape[1] - q_BTHP.shape[1]:]
        keep_HP = (1 + self.epsilon).repeat_interleave(self.head_dim).view(self.heads, self.head_dim)
        node_BTHP = keep_HP * own_BTHP + self.gathered(q_BTHP, k_BSGP, v_BSGP)
        h_BTHF = F.silu(torch.einsum("bthp,hfp->bthf", node_BTHP, self.up))
        return torch.einsum("bthf,hpf->bthp", h_BTHF, self.down)

    def gathered(self, q_BTHP: Tensor, k_BSHP: Tensor, v_BSHP: Tensor) -> Tensor:
        """Neighbours' values by the weights of their edges."""
        if self.threshold is None:
            return attend(q_BTHP, k_BSHP, v_BSHP, None)
        score_BHTS = torch.matmul(q_BTHP.transpose(1, 2), k_BSHP.permute(0, 2, 3, 1)) * self.head_dim**-0.5
        mask_TS = visible(q_BTHP.shape[1], k_BSHP.shape[1], None, False, q_BTHP.device)
        if mask_TS is not None:
            score_BHTS = score_BHTS.masked_fill(~mask_TS, -torch.inf)
        edge_BHTS = F.relu(torch.softmax(score_BHTS, -1) - self.threshold)
        return torch.matmul(edge_BHTS, v_BSHP.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class GINAttention(Operator):
    """Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers (Buehler, 2025), the GIN variant.

    ratio: hidden size of each head's network over head_dim. threshold: edges at or below it are cut; None keeps all.
    Principal neighbourhood aggregation, and the sparse branch beside a frozen attention, are not here.

    Nodes are the heads' values; in the authors' code they are slices of the stream, which a value projection contains.
    """

    heads: Any = 4
    ratio: Any = 2
    threshold: Any = None
    head_dim: Any = None
    rotary: Any = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers", 2025,
                                      options=("S317",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}

    def _hidden(self, width: int) -> int:
        return int(max(1, round(self.ratio * head_size(self, width))))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_even(head_size(self, width), where)
        check_ratio(self.ratio, where)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is a weight of attention, from 0 to below 1, at {where}: got {self.threshold}; "
                             "use None to keep all edges")

    def axes(self, width: int) -> dict[str, Param]:
        size, h, f = head_size(self, width), axis("heads", self.heads), axis("gin_hidden", self._hidden(width))
        p, made, each = axis("head_dim", size), axis("made", size), Init("last")
        queries = h * axis("half", 2) * axis("pairs", size // 2)
        declared = projections_of(axis("width", width), queries, h * p)
        return {**declared, "out.weight": param(axis("width", width), h * made), "epsilon": param(h, init="zeros"),
                "up": param(h, f, p, init=each), "down": param(h, made, f, init=each)}

    def build(self, width: int) -> nn.Module:
        return IsomorphicAttention(width, self.heads, head_size(self, width), self._hidden(width), self.threshold,
                                   bool(self.rotary))

    def macs(self, width: int, length: int) -> float:
        """Projections, edges and what they gather over the visible pairs, and the heads' networks."""
        pairs = length * (length + 1) // 2
        return float(length * (self.matrix_numel(width) + self._network_macs(width))
                     + 2 * self.heads * head_size(self, width) * pairs)

    def decode_macs(self, width: int, length: int) -> float:
        pairs = self.heads * head_size(self, width) * (length + 1)
        return float(self.matrix_numel(width) + self._network_macs(width) + 2 * pairs)

    def _network_macs(self, width: int) -> int:
        return int(2 * self.heads * head_size(self, width) * self._hidden(width))

    def state_numel(self, width: int, length: int) -> int:
        return int(2 * length * self.heads * head_size(self, width))
