"""Softmax attention with a small feed-forward network in every head.

Legend: B batch, T tokens, S visible tokens, D width, H heads, P head_dim, F hidden units of a head.
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
from .attention import Attention
from .causal_attention import CausalAttention, attend
from .mlp import check_ratio, hidden_size

__all__ = ["HeadNetworks", "PartialFormer"]


class HeadNetworks(CausalAttention):
    """Causal self-attention; what a head read goes through `down_h relu(up_h y)` before the output projection."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, rope_base: float):
        super().__init__(width, heads, heads, head_dim, rope_base=rope_base)
        self.head_up = nn.Parameter(torch.empty(heads, hidden, head_dim))
        self.head_down = nn.Parameter(torch.empty(heads, head_dim, hidden))

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        y_BTHP = attend(q_BTHP, k_BSGP, v_BSGP, None)
        h_BTHF = F.relu(torch.einsum("bthp,hfp->bthf", y_BTHP, self.head_up))
        return torch.einsum("bthf,hpf->bthp", h_BTHF, self.head_down)


@dataclass(frozen=True)
class PartialFormer(Operator):
    """PartialFormer (Zheng et al., 2023): instead of one large feed-forward layer, small ones inside attention, one on the
    output of every head. A block of it alone has `Identity()` for channel mixer.

    ratio: hidden units of a head's network over head_dim, rounded up to a multiple of 8; the paper holds that they should
    be many. heads, head_dim, rope_base: as of `Attention`. Each head has matrices of its own and no gate; the
    paper's gated networks, its head scaling and the attention carried across depth are not part of this.
    """

    heads: Any = 8
    head_dim: Any = None
    ratio: Any = 4
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
    source: ClassVar[Source] = Source("PartialFormer: Modeling Part Instead of Whole for Machine Translation", 2023,
                                      options=("S193",))

    def _plain(self) -> Attention:
        return Attention(heads=self.heads, head_dim=self.head_dim, rope_base=self.rope_base)

    def _hidden(self, width: int) -> int:
        return hidden_size(self.ratio, self._plain().sizes(width)[2])

    def check(self, width: int, where: str) -> None:
        self._plain().check(width, where)
        check_ratio(self.ratio, where)

    def axes(self, width: int) -> dict[str, Param]:
        heads, entries = axis("kv_heads", self.heads), axis("head_dim", self._plain().sizes(width)[2])
        hidden, each = axis("hidden", self._hidden(width)), Init("last")
        return {**self._plain().axes(width), "head_up": param(heads, hidden, entries, init=each),
                "head_down": param(heads, entries, hidden, init=each)}

    def build(self, width: int) -> nn.Module:
        head_dim = self._plain().sizes(width)[2]
        return HeadNetworks(width, self.heads, head_dim, self._hidden(width), self.rope_base)

    def _networks(self, width: int) -> int:
        """Multiply-adds of the heads' networks for one token."""
        return int(2 * self.heads * self._hidden(width) * self._plain().sizes(width)[2])

    def macs(self, width: int, length: int) -> float:
        return self._networks(width) * length + self._plain().macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        return self._networks(width) + self._plain().decode_macs(width, length)

    def state_numel(self, width: int, length: int) -> int:
        return self._plain().state_numel(width, length)
