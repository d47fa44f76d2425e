"""Attention whose heads are experts: some for every token, others for the tokens that choose them.

Legend: B batch, T new tokens, S visible tokens, D width, H heads, P head_dim, K chosen heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .causal_attention import CausalAttention, attend
from .checks import require_whole
from .heads import projections_of, require_even
from .windows import check_heads, head_size

__all__ = ["MixtureOfHeads", "MixtureOfHeadsAttention"]


class MixtureOfHeadsAttention(CausalAttention):
    """Each head's output times its gate. Gates of the shared and of the chosen heads sum to their number, and are weighed
    against each other by two numbers that sum to 2, so that indifferent routers leave plain attention.

    All heads are computed; a head that a token did not choose counts 0 there.
    """

    def __init__(self, width: int, heads: int, head_dim: int, shared_heads: int, top_k: int, window: int | None = None,
                 rotary: bool = True, bidirectional: bool = False):
        super().__init__(width, heads, heads, head_dim, window, rotary=rotary)
        self.shared_heads, self.top_k, self.bidirectional = shared_heads, top_k, bidirectional
        self.share = nn.Linear(width, shared_heads, bias=False)
        self.route = nn.Linear(width, heads - shared_heads, bias=False)
        self.weigh = nn.Linear(width, 2, bias=False)

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        y_BTHP, new_state = self.by_head(x_BTD, state, shared)
        return self.out((y_BTHP * self.gates(x_BTD)[..., None]).flatten(2)), new_state

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, self.window, self.bidirectional)

    def gates(self, x_BTD: Tensor) -> Tensor:
        """[B, T, H], the shared heads first."""
        weigh_BT2 = 2 * torch.softmax(self.weigh(x_BTD), -1)
        always = self.shared_heads * torch.softmax(self.share(x_BTD), -1)
        share = torch.softmax(self.route(x_BTD), -1)
        best_BTK, chosen_BTK = share.topk(self.top_k, dim=-1)
        routed = torch.zeros_like(share).scatter(-1, chosen_BTK, self.top_k * best_BTK / best_BTK.sum(-1, keepdim=True))
        return torch.cat([weigh_BT2[..., :1] * always, weigh_BT2[..., 1:] * routed], -1)


@dataclass(frozen=True)
class MixtureOfHeads(Operator):
    """MoH: Multi-Head Attention as Mixture-of-Head Attention (Jin et al., 2024), gates scaled as in the authors' code.

    shared_heads: those that every token uses, among `heads`. top_k: how many of the others a token uses. head_dim
    defaults to width / heads. window, bidirectional, rotary: as of `Attention`, whose weights may be taken over. Nothing
    balances the load; give the training loss a term of its own where heads starve.
    """

    heads: Any = 8
    shared_heads: Any = 2
    top_k: Any = 4
    head_dim: Any = None
    window: Any = None
    bidirectional: Any = False
    rotary: Any = True
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    source: ClassVar[Source] = Source("MoH: Multi-Head Attention as Mixture-of-Head Attention", 2024, systems=("S379",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}
        return {"kinds": "shared heads, then routed ones", **pairs}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_even(head_size(self, width), where)
        require_whole("shared_heads", self.shared_heads, where)
        require_whole("top_k", self.top_k, where)
        if self.shared_heads + self.top_k > self.heads:
            raise ValueError(f"shared_heads and top_k must not exceed heads at {where}: got {self.shared_heads} and "
                             f"{self.top_k} of {self.heads}; use {max(1, self.heads - self.shared_heads)} for top_k")
        if self.window is not None:
            require_whole("window", self.window, where, instead="use None for full attention")

    def axes(self, width: int) -> dict[str, Param]:
        size, d = head_size(self, width), axis("width", width)
        shared, routed = axis("shared_heads", self.shared_heads), axis("routed_heads", self.heads - self.shared_heads)
        heads = shared + routed
        return {**projections_of(d, heads * axis("half", 2) * axis("pairs", size // 2), heads * axis("head_dim", size)),
                "share.weight": param(shared, d), "route.weight": param(routed, d),
                "weigh.weight": param(axis("kinds", 2), d)}

    def build(self, width: int) -> nn.Module:
        return MixtureOfHeadsAttention(width, self.heads, head_size(self, width), self.shared_heads, self.top_k,
                                       self.window, bool(self.rotary), bool(self.bidirectional))

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values of all heads over the visible pairs."""
        window = min(self.window or length, length)
        behind = window * (window + 1) // 2 + (length - window) * window
        pairs = 2 * behind - length if self.bidirectional else behind
        return float(self.matrix_numel(width) * length + 2 * self.heads * head_size(self, width) * pairs)

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways and there is no next token."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        seen = min(length + 1, self.window or length + 1)
        return float(self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * seen)

    def state_numel(self, width: int, length: int) -> int:
        kept = length if self.window is None else min(length, self.window - 1)
        return 0 if self.bidirectional else 2 * kept * self.heads * head_size(self, width)
