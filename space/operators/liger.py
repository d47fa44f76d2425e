"""Liger: a gated recurrence and a softmax over the last tokens, from the projections of one attention layer.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, P head_dim, W window, N blocks
of W tokens, X = B * N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.gated_linear.chunked import chunked_gated_linear, gated_linear_step
from ..axes import Param
from ..operator import Operator, Source
from .attention import Attention, attend, rotate, rotation
from .checks import require_whole
from .recurrence import CHUNK, gated_macs

__all__ = ["Liger", "LigerAttention"]


class LigerAttention(nn.Module):
    """`mix` of `softmax(q_t) S_t`, where `S_t = diag(a_t) S_{t-1} + softmax(k_t)^T v_t` and
    `a_t = sigmoid(k_t)^(1 / temperature)`, and `1 - mix` of rotary softmax attention to the last `window` tokens."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int = 64, mix: float = 0.5,
                 temperature: float = 16.0, rope_base: float = 10000.0, chunk: int = 32):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.window, self.chunk = heads, kv_heads, head_dim, window, chunk
        self.mix, self.temperature, self.rope_base = mix, temperature, rope_base
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        memory = torch.zeros(batch, self.heads, self.head_dim, self.head_dim, device=device,
                             dtype=torch.promote_types(dtype, torch.float32))
        return {"key": empty, "value": empty, "memory": memory, "position": 0}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        q_BTHP = self.query(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        k_BTGP = self.key(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        v_BTGP = self.value(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        gated_BTHP, memory = self.recur(q_BTHP, k_BTGP, v_BTGP, None if state is None else state["memory"])
        start, length = (0 if state is None else state["position"]), x_BTD.shape[1]
        turn = rotation(start, length, self.head_dim // 2, self.rope_base, x_BTD)
        k_BSGP, v_BSGP = rotate(k_BTGP, *turn), v_BTGP
        if state is not None:
            k_BSGP, v_BSGP = torch.cat([state["key"], k_BSGP], dim=1), torch.cat([state["value"], v_BSGP], dim=1)
        near_BTHP = attend(rotate(q_BTHP, *turn), k_BSGP, v_BSGP, self.window)
        y_BTHP = self.mix * gated_BTHP + (1 - self.mix) * near_BTHP
        past = k_BSGP.shape[1] - min(self.window - 1, k_BSGP.shape[1])
        new_state = {"key": k_BSGP[:, past:], "value": v_BSGP[:, past:], "memory": memory, "position": start + length}
        return self.out(y_BTHP.flatten(2)), new_state

    def recur(self, q_BTHP: Tensor, k_BTGP: Tensor, v_BTGP: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The recurrence of all query heads, each with the keys, values and decays of its group."""
        group, dtype = self.heads // self.kv_heads, torch.promote_types(q_BTHP.dtype, torch.float32)
        k_BTHP = k_BTGP.to(dtype).repeat_interleave(group, dim=2)
        v_BTHP = v_BTGP.repeat_interleave(group, dim=2)
        log_decay_BTHP = F.logsigmoid(k_BTHP) / self.temperature
        q_BTHP, k_BTHP = q_BTHP.to(dtype).softmax(-1), k_BTHP.softmax(-1)
        if q_BTHP.shape[1] == 1 and memory is not None:
            return gated_linear_step(q_BTHP, k_BTHP, v_BTHP, log_decay_BTHK=log_decay_BTHP, state_BHKV=memory)
        return chunked_gated_linear(q_BTHP, k_BTHP, v_BTHP, log_decay_BTHK=log_decay_BTHP, state_BHKV=memory,
                                    chunk=self.chunk)


@dataclass(frozen=True)
class Liger(Operator):
    """Liger: Linearizing Large Language Models to Gated Recurrent Structures (Lan et al., 2025), with the gate of GLA.

    Its parameters are those of `Attention(heads, kv_heads, head_dim)`, name by name, so that a trained transformer's
    weights are where it starts; the gates come from the keys. window: tokens of the softmax. mix: weight of the recurrence,
    1 - mix that of the softmax. temperature: divides the logarithm of the decays.

    `linearised` makes a trained network of attention one of these; a short training recovers it.

    As in the authors' code: features are a softmax over the entries of a head, before rotation, nothing divides the
    recurrence by its weights, and the pooling of keys that the paper writes leaves them as they are.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    window: Any = 64
    mix: Any = 0.5
    temperature: Any = 16
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
    source: ClassVar[Source] = Source("Liger: Linearizing Large Language Models to Gated Recurrent Structures", 2025,
                                      options=("S269",))

    def _attention(self) -> Attention:
        """The attention whose projections these are."""
        return Attention(self.heads, self.kv_heads, self.head_dim, self.window, self.rope_base)

    def check(self, width: int, where: str) -> None:
        require_whole("window", self.window, where, instead="use 64")
        self._attention().check(width, where)
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be a number from 0 to 1 at {where}: got {self.mix}; it is the recurrence's share")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number at {where}: got {self.temperature}; use 16")

    def axes(self, width: int) -> dict[str, Param]:
        return self._attention().axes(width)

    def build(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self._attention().sizes(width)
        return LigerAttention(width, self.heads, kv_heads, head_dim, self.window, float(self.mix), float(self.temperature),
                              self.rope_base, CHUNK)

    def macs(self, width: int, length: int) -> float:
        """Projections, visible pairs, and the recurrence's chunks."""
        head_dim = self._attention().sizes(width)[2]
        pairs = 2 * self.heads * head_dim * self._attention().visible_pairs(length)
        return float(self.matrix_numel(width) * length + pairs) + gated_macs(length, self.heads, head_dim, head_dim)

    def decode_macs(self, width: int, length: int) -> float:
        """Those of the attention, and two passes over the memory: write and read."""
        return self._attention().decode_macs(width, length) + 2.0 * self._memory_numel(width)

    def state_numel(self, width: int, length: int) -> int:
        return self._attention().state_numel(width, length) + self._memory_numel(width)

    def _memory_numel(self, width: int) -> int:
        return int(self.heads * self._attention().sizes(width)[2] ** 2)
