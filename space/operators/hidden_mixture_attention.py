"""Attention over a part of the channels, which each token chooses.

Legend: B batch, T new tokens, S visible tokens, N tokens of all sequences, D width, E channels of all heads, H heads,
P head_dim, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .causal_attention import attend, rotate, rotation
from .heads import projections_of, require_even
from .hidden_mixture import check_groups, chosen_groups, group_sizes, read_active, write_active
from .windows import check_heads, head_size

__all__ = ["HiddenMixtureAttention", "MoHDAttention"]


class HiddenMixtureAttention(nn.Module):
    """Causal attention; queries, keys and values read, and the output matrix writes, the shared channels and the groups that
    a router picks. The cache keeps keys and values."""

    def __init__(self, width: int, heads: int, head_dim: int, shared: int, groups: int, top_k: int, rotary: bool):
        super().__init__()
        self.heads, self.head_dim, self.rotary = heads, head_dim, rotary
        self.shared, self.top_k = shared, top_k
        # Channels that are left out take their share of the norm with them.
        self.scale = (width / (shared + top_k * ((width - shared) // groups))) ** 0.5
        self.router = nn.Linear(width, groups, bias=False)
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.fusion = nn.Parameter(torch.empty(groups, groups))

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty, "position": 0}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        batch, length, _ = x_BTD.shape
        start = 0 if state is None else state["position"]
        x_ND = x_BTD.flatten(0, 1)
        weight_NG, members = chosen_groups(self.router(x_ND), self.top_k)
        q_BTHP, k_BSHP, v_BSHP = (
            read_active(self.scale * x_ND, members, matrix.weight, self.shared).view(batch, length, self.heads, self.head_dim)
            for matrix in (self.query, self.key, self.value))
        if self.rotary:
            cos_T1F, sin_T1F = rotation(start, length, self.head_dim // 2, 10000.0, x_BTD)
            q_BTHP, k_BSHP = rotate(q_BTHP, cos_T1F, sin_T1F), rotate(k_BSHP, cos_T1F, sin_T1F)
        if state is not None:
            k_BSHP = torch.cat([state["key"], k_BSHP], dim=1)
            v_BSHP = torch.cat([state["value"], v_BSHP], dim=1)
        h_NE = self.scale * attend(q_BTHP, k_BSHP, v_BSHP, None).reshape(batch * length, self.heads * self.head_dim)
        y_ND = write_active(h_NE, weight_NG, members, self.out.weight, self.fusion, self.shared)
        return y_ND.view(x_BTD.shape), {"key": k_BSHP, "value": v_BSHP, "position": start + length}


@dataclass(frozen=True)
class MoHDAttention(Operator):
    """Mixture of Hidden-Dimensions (Chen et al., 2024) around causal attention: a token's queries, keys and values read, and
    its output writes, the shared channels and `top_k` of `groups` groups of the others.

    shared, groups, top_k: as of `MoHD`, whose routing, activation scaling and group fusion it has, with a router of its
    own. heads, head_dim, rotary: as of `Attention`, which it is with all groups on, a flat router and no fusion.
    """

    heads: Any = 4
    shared: Any = 0.5
    groups: Any = 8
    top_k: Any = 2
    head_dim: Any = None
    rotary: Any = True
    dense: ClassVar[str] = "Attention"
    chooses: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    causal_to_the_bit: ClassVar[bool] = False      # the rows of a group are multiplied together, later ones included
    source: ClassVar[Source] = Source("Mixture of Hidden-Dimensions Transformer", 2024, systems=("S179",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}
        return {"width": "channels are in groups", "groups": "groups follow one another in the width",
                "fused": "groups follow one another in the width", **pairs}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_even(head_size(self, width), where)
        check_groups(self, width, where)

    def axes(self, width: int) -> dict[str, Param]:
        size, d, h = head_size(self, width), axis("width", width), axis("heads", self.heads)
        mixed = param(axis("fused", self.groups), axis("groups", self.groups), share="own", init="zeros")
        return {"router.weight": param(axis("groups", self.groups), d), "fusion": mixed,
                **projections_of(d, h * axis("half", 2) * axis("pairs", size // 2), h * axis("head_dim", size))}

    def build(self, width: int) -> nn.Module:
        shared = group_sizes(self, width)[0]
        return HiddenMixtureAttention(width, self.heads, head_size(self, width), shared, self.groups, self.top_k,
                                      bool(self.rotary))

    def _token_macs(self, width: int) -> float:
        """The router, four matrices over the active channels, and the fusion of groups."""
        shared, size = group_sizes(self, width)
        active = 4 * (shared + self.top_k * size) * self.heads * head_size(self, width)
        return float(width * self.groups + active + self.groups**2 * size)

    def macs(self, width: int, length: int) -> float:
        """Every token, plus scores and values over the pairs that are seen."""
        return length * self._token_macs(width) + float(self.heads * head_size(self, width) * length * (length + 1))

    def decode_macs(self, width: int, length: int) -> float:
        return self._token_macs(width) + float(2 * self.heads * head_size(self, width) * (length + 1))

    def state_numel(self, width: int, length: int) -> int:
        return int(2 * length * self.heads * head_size(self, width))
