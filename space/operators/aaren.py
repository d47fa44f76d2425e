"""Attention as an RNN: softmax attention of one learned query, as a recurrence over the keys.

Legend: B batch, T tokens, D width, H heads, K key_dim, V value_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_recurrence.chunked import chunked_linear_recurrence, linear_recurrence_step
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .recurrence import CHUNK, check_heads, recurrence_macs

__all__ = ["Aaren", "PrefixAttention"]


class PrefixAttention(nn.Module):
    """`o_t = sum of exp(s_i) v_i / sum of exp(s_i)` over i <= t with `s_i = q . k_i / sqrt(K)` and q a parameter.

    With the running maximum m, both sums over exp(s_i - m_t) obey `w_t = exp(m_{t-1} - m_t) w_{t-1} + exp(s_t - m_t) v_t`:
    a linear recurrence with a decay per head, which runs by chunks. m takes no gradient, as no output depends on it.
    """

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, chunk: int = 32):
        super().__init__()
        self.heads, self.value_dim, self.chunk = heads, value_dim, chunk
        self.query = nn.Parameter(torch.empty(heads, key_dim))
        self.key = nn.Linear(width, heads * key_dim, bias=False)
        self.value = nn.Linear(width, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"sums": torch.zeros(batch, self.heads, 1, self.value_dim + 1, dtype=dtype, device=device),
                "peak": torch.full((batch, 1, self.heads), -torch.inf, dtype=dtype, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        score_BTH = self.scores(x_BTD)
        peaks_BSH = torch.cat([state["peak"], score_BTH.detach()], dim=1).cummax(1).values
        # The floor keeps the first decay, from nothing, finite; a weight of exp(-60) changes no sum.
        log_decay_BTH = (peaks_BSH[:, :-1] - peaks_BSH[:, 1:]).clamp_min(-60.0)
        k_BTH1 = (score_BTH - peaks_BSH[:, 1:]).exp()[..., None]
        v_BTHV = F.pad(self.value(x_BTD).unflatten(-1, (self.heads, -1)).to(k_BTH1.dtype), (0, 1), value=1.0)
        q_BTH1 = torch.ones_like(k_BTH1)
        if x_BTD.shape[1] == 1:
            o_BTHV, sums = linear_recurrence_step(q_BTH1, k_BTH1, v_BTHV, log_decay_BTH=log_decay_BTH,
                                                  state_BHKV=state["sums"])
        else:
            o_BTHV, sums = chunked_linear_recurrence(q_BTH1, k_BTH1, v_BTHV, log_decay_BTH=log_decay_BTH,
                                                     state_BHKV=state["sums"], chunk=self.chunk)
        y_BTE = (o_BTHV[..., :-1] / o_BTHV[..., -1:]).flatten(2).to(x_BTD.dtype)
        return self.out(y_BTE), {"sums": sums, "peak": peaks_BSH[:, -1:]}

    def scores(self, x_BTD: Tensor) -> Tensor:
        """How much the query wants each token, [B, T, H], in float32 at least."""
        k_BTHK = self.key(x_BTD).unflatten(-1, self.query.shape)
        score_BTH: Tensor = torch.einsum("bthk,hk->bth", k_BTHK, self.query) * self.query.shape[1] ** -0.5
        return score_BTH.to(torch.promote_types(score_BTH.dtype, torch.float32))


@dataclass(frozen=True)
class Aaren(Operator):
    """Attention as an RNN (Feng et al., 2024): the [A]ttention [a]s a [re]current neural [n]etwork module.

    The query is learned and does not depend on the input, so that a state of value_dim + 2 numbers a head holds all of the
    past; every output attends to all tokens so far. head_dim defaults to width / heads; key_dim to head_dim.
    """

    heads: Any = 4
    head_dim: Any = None
    key_dim: Any = None
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Attention as an RNN", 2024, systems=("S282",))

    def sizes(self, width: int) -> tuple[int, int]:
        """Key and value size of a head."""
        head_dim = self.head_dim or width // self.heads
        return self.key_dim or head_dim, head_dim

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        if self.key_dim is not None:
            require_whole("key_dim", self.key_dim, where)

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim = self.sizes(width)
        d, h, k = axis("width", width), axis("heads", self.heads), axis("key_dim", key_dim)
        values = h * axis("value_dim", value_dim)
        return {"query": param(h, k, init=Init("normal", gain=1.0)), "key.weight": param(h * k, d),
                "value.weight": param(values, d), "out.weight": param(d, values)}

    def build(self, width: int) -> nn.Module:
        return PrefixAttention(width, self.heads, *self.sizes(width), CHUNK)

    def _token_macs(self, width: int) -> int:
        """Projections and scores."""
        return int(self.matrix_numel(width) + self.heads * self.sizes(width)[0])

    def macs(self, width: int, length: int) -> float:
        """Projections, scores, and the products of the chunks the sequence is cut into."""
        return self._token_macs(width) * length + recurrence_macs(length, self.heads, 1, self.sizes(width)[1] + 1)

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, scores, and two passes over the sums: write and read."""
        return float(self._token_macs(width) + 2 * self.heads * (self.sizes(width)[1] + 1))

    def state_numel(self, width: int, length: int) -> int:
        """The sums of values and of weights, and the largest score."""
        return int(self.heads * (self.sizes(width)[1] + 2))
