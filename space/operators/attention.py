"""Softmax attention with rotary positions, grouped key/value heads and an optional sliding window.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, R queries per key (H / G),
P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["Attention", "CausalAttention"]


def rotation(start: int, length: int, half: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [T, 1, half], of the rotary angles of positions start, start + 1, ... (Su et al., 2021)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    steps = torch.arange(half, device=like.device, dtype=dtype)
    position_T = torch.arange(start, start + length, device=like.device, dtype=dtype)
    angle_T1F = torch.outer(position_T, base ** (-steps / half))[:, None, :]
    return angle_T1F.cos().to(like.dtype), angle_T1F.sin().to(like.dtype)


def rotate(x_BTHP: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of each head by the angles of their positions."""
    a, b = x_BTHP.chunk(2, dim=-1)
    return torch.cat([a * cos_T1F - b * sin_T1F, b * cos_T1F + a * sin_T1F], dim=-1)


class CausalAttention(nn.Module):
    """Causal self-attention. The cache keeps keys and values; with a window only the last `window` of them."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None = None,
                 rope_base: float = 10000.0):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base = window, rope_base
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty, "position": 0}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        batch, length, _ = x_BTD.shape
        start = 0 if state is None else state["position"]
        cos_T1F, sin_T1F = rotation(start, length, self.head_dim // 2, self.rope_base, x_BTD)
        q_BTHP = rotate(self.query(x_BTD).view(batch, length, self.heads, self.head_dim), cos_T1F, sin_T1F)
        k_BSGP = rotate(self.key(x_BTD).view(batch, length, self.kv_heads, self.head_dim), cos_T1F, sin_T1F)
        v_BSGP = self.value(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        if state is not None:
            k_BSGP = torch.cat([state["key"], k_BSGP], dim=1)
            v_BSGP = torch.cat([state["value"], v_BSGP], dim=1)
        y_BTHP = self.attend(q_BTHP, k_BSGP, v_BSGP)
        keep = k_BSGP.shape[1] if self.window is None else min(self.window - 1, k_BSGP.shape[1])
        new_state = {"key": k_BSGP[:, k_BSGP.shape[1] - keep:], "value": v_BSGP[:, v_BSGP.shape[1] - keep:],
                     "position": start + length}
        return self.out(y_BTHP.reshape(batch, length, self.heads * self.head_dim)), new_state

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        new, seen = q_BTHP.shape[1], k_BSGP.shape[1]
        q, k, v = q_BTHP.transpose(1, 2), k_BSGP.transpose(1, 2), v_BSGP.transpose(1, 2)
        whole = self.window is None and new == seen
        mask_TS = None if whole else self.visible(new, seen, q.device)
        y_BHTP = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=whole,
                                                enable_gqa=self.heads != self.kv_heads)
        return y_BHTP.transpose(1, 2)

    def visible(self, new: int, seen: int, device: torch.device) -> Tensor | None:
        """Which keys each query sees, aligned at the newest token; None when a single query sees all."""
        if new == 1 and (self.window is None or seen <= self.window):
            return None
        query_T1 = torch.arange(seen - new, seen, device=device)[:, None]
        key_1S = torch.arange(seen, device=device)[None, :]
        mask_TS = key_1S <= query_T1
        return mask_TS if self.window is None else mask_TS & (key_1S > query_T1 - self.window)


@dataclass(frozen=True)
class Attention(Operator):
    """Multi-head softmax attention (Vaswani et al., 2017), grouped key/value heads (GQA, Ainslie et al., 2023),
    rotary positions (Su et al., 2021), sliding window (Longformer, Beltagy et al., 2020).

    `window=w` sees the token itself and the w - 1 before it. head_dim defaults to width / heads.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    window: Any = None
    rope_base: float = 10000.0
    source: ClassVar[Source] = Source("GQA: Training Generalized Multi-Query Transformer Models from Multi-Head "
                                      "Checkpoints", 2023, options=("S281",))

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(kv_heads, queries per key, head_dim) with defaults filled in."""
        kv_heads = self.kv_heads or self.heads
        return kv_heads, self.heads // kv_heads, self.head_dim or width // self.heads

    def check(self, width: int, where: str) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1 at {where}: got {self.heads}")
        if self.head_dim is None and width % self.heads:
            good = [h for h in range(1, width + 1) if width % h == 0 and (width // h) % 2 == 0]
            near = sorted(sorted(good, key=lambda h: abs(h - self.heads))[:2])
            raise ValueError(f"heads must divide width at {where}: got {self.heads} and {width}; "
                             f"use {' or '.join(map(str, near))}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads must divide heads at {where}: got {self.kv_heads} and {self.heads}; "
                             f"use a divisor of {self.heads}")
        if self.sizes(width)[2] % 2:
            raise ValueError(f"head_dim must be even for rotary positions at {where}: got {self.sizes(width)[2]}; "
                             "choose heads so that width / heads is even, or set head_dim")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 at {where}: got {self.window}; use None for full attention")

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, group, head_dim = self.sizes(width)
        d, g, r = axis("width", width), axis("kv_heads", kv_heads), axis("group", group)
        half, pairs = axis("half", 2), axis("pairs", head_dim // 2)
        return {
            "query.weight": param(g * r * half * pairs, d),
            "key.weight": param(g * half * pairs, d),
            "value.weight": param(g * axis("head_dim", head_dim), d),
            "out.weight": param(d, g * r * axis("head_dim", head_dim)),
        }

    def build(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self.sizes(width)
        return CausalAttention(width, self.heads, kv_heads, head_dim, self.window, self.rope_base)

    def visible_pairs(self, length: int) -> int:
        """Query-key pairs inside the causal window over a whole sequence."""
        window = min(self.window or length, length)
        return window * (window + 1) // 2 + (length - window) * window

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values over the visible pairs only."""
        pairs = 2 * self.heads * self.sizes(width)[2] * self.visible_pairs(length)
        return float(self.matrix_numel(width) * length + pairs)

    def decode_macs(self, width: int, length: int) -> float:
        seen = length + 1 if self.window is None else min(length + 1, self.window)
        return float(self.matrix_numel(width) + 2 * self.heads * self.sizes(width)[2] * seen)

    def state_numel(self, width: int, length: int) -> int:
        kv_heads, _, head_dim = self.sizes(width)
        kept = length if self.window is None else min(length, self.window - 1)
        return 2 * kept * kv_heads * head_dim
