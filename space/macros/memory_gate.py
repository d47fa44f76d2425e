"""Attention in a window beside a memory that gates it, behind learned tokens that both see.

Legend: B batch, T tokens, N persistent tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..operator import Length, tokens_of
from ..operators.checks import require_whole
from ..operators.prefix_attention import prefix_pairs
from ..operators.rmsnorm import RootMeanSquareNorm
from .base import Part
from .memory_context import BesideMemory
from .running import initial_state, step_part

__all__ = ["GateMemory", "MemoryAsGate"]


class GateMemory(nn.Module):
    """norm(y) * sigmoid(norm(m)): y from attention in a window with the persistent tokens always in sight, m from the memory,
    which reads these before the first token."""

    def __init__(self, memory: nn.Module, attention: nn.Module, width: int, window: int, persistent: int):
        super().__init__()
        self.memory: Any = memory
        self.attention: Any = attention
        self.window, self.num_prefix = window, persistent
        self.norm = RootMeanSquareNorm(width)
        self.memory_norm = RootMeanSquareNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        m_BTD = self.memory(torch.cat([self.attention.learned(x_BTD), x_BTD], 1))[:, self.num_prefix:]
        y_BTD = self.attention(x_BTD, self.num_prefix, self.attention.prefix(x_BTD),
                               [self.attention.keys_values(x_BTD, self.num_prefix)], self.window)
        return self.gated(y_BTD, m_BTD)

    def gated(self, y_BTD: Tensor, m_BTD: Tensor) -> Tensor:
        return self.norm(y_BTD) * torch.sigmoid(self.memory_norm(m_BTD))  # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        like = torch.zeros(batch, 0, self.norm.weight.shape[0], dtype=dtype, device=device)
        key, value = self.attention.prefix(like)
        memory = initial_state(self.memory, batch, dtype, device)
        if self.num_prefix:
            memory = step_part(self.memory, self.attention.learned(like), memory, True)[1]
        none = self.attention.empty(batch, dtype, device)
        return {"prefix_key": key.clone(), "prefix_value": value.clone(), "key": none, "value": none, "position": 0,
                "memory": memory}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        m_BTD, memory = step_part(self.memory, x_BTD, state["memory"], True)
        start = self.num_prefix + state["position"]
        new_key, new_value = self.attention.keys_values(x_BTD, start)
        key, value = torch.cat([state["key"], new_key], 1), torch.cat([state["value"], new_value], 1)
        y_BTD = self.attention(x_BTD, start, (state["prefix_key"], state["prefix_value"]), [(key, value)], self.window)
        first = max(key.shape[1] - self.window + 1, 0)
        return self.gated(y_BTD, m_BTD), {**state, "key": key[:, first:], "value": value[:, first:], "memory": memory,
                                          "position": state["position"] + x_BTD.shape[1]}


@dataclass(frozen=True)
class MemoryAsGate(BesideMemory):
    """Titans with memory as a gate (MAG; Behrouz, Zhong and Mirrokni, 2025), a mixer.

    Attention over the last `window` tokens and `persistent` learned ones at the beginning, times a gate from a memory that
    reads the same sequence. memory: a `NeuralMemory`, or any operator that mixes causally and streams. heads, head_dim: of
    the attention, with rotary positions that count the persistent tokens. The gate is RMS norms with learned gains of both,
    and a sigmoid of the memory's: the paper normalises both with learned vectors before a non-linearity it does not name.
    """

    memory: Any
    window: Any = 64
    persistent: Any = 4
    heads: Any = 4
    head_dim: Any = None
    rope_base: float = 10000.0

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_whole("window", self.window, where)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        tokens, inner = tokens_of(length), self.inner(width)
        pairs = tokens * self.persistent + prefix_pairs(tokens, self.window)
        return float(inner * (4 * tokens * width + 2 * self.persistent * width + 2 * pairs))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        seen = self.persistent + min(tokens_of(length) + 1, self.window)
        return float(self.inner(width) * (4 * width + 2 * seen))

    def state_numel(self, width: int, length: Length) -> int:                        # type: ignore[override]
        return 2 * self.inner(width) * int(self.persistent + min(tokens_of(length), self.window - 1))

    def parts(self, width: int, length: Length) -> list[Part]:
        return [Part("memory", self.memory, ("memory",), width, self.persistent + tokens_of(length))]

    def build(self, width: int) -> nn.Module:
        return GateMemory(self.memory.build(width), self.attention(width), width, self.window, self.persistent)
