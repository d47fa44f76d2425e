"""Attention that looks both ways, and attention with the keys and values of an earlier layer.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, P head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .causal_attention import CausalAttention, attend, rotate, rotation
from .layernorm import LayerNormalisation
from .rmsnorm import RootMeanSquareNorm

__all__ = ["BidirectionalAttention", "ReusingAttention", "SingleValueAttention"]


class BidirectionalAttention(CausalAttention):
    """Self-attention in which all tokens see each other; with a window those less than `window` apart."""

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, self.window, bidirectional=True)


class ReusingAttention(nn.Module):
    """Queries of its own to the keys and values that the nearest attention layer before it published.

    It keeps no state: cached keys and values come with the new ones. A published window holds here as well.
    """

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None = None,
                 rope_base: float = 10000.0, rotary: bool = True, qk_norm: bool = False, bidirectional: bool = False,
                 sub_norm: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary, self.bidirectional = window, rope_base, rotary, bidirectional
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.sub_norm = LayerNormalisation(heads * head_dim) if sub_norm else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {}

    def forward(self, x_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to everything the earlier layer saw."""
        k_BSGP, v_BSGP, start, window = self.published(shared)
        q_BTHP = self.query(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        if self.query_norm is not None:
            q_BTHP = self.query_norm(q_BTHP)
        if self.rotary:
            q_BTHP = rotate(q_BTHP, *rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD))
        y_BTHP = attend(q_BTHP, k_BSGP, v_BSGP, window, self.bidirectional)
        y_BTE = y_BTHP.flatten(2)
        if self.sub_norm is not None:
            y_BTE = self.sub_norm(y_BTE)
        return self.out(y_BTE), {}

    def published(self, shared: dict[str, Any]) -> tuple[Tensor, Tensor, int, int | None]:
        """Keys, values, position of the first new token, and the narrower of the two windows.

        Raises ValueError where no layer published any, or the layer that did has other sizes.
        """
        if "kv" not in shared:
            raise ValueError("reuse_kv needs an attention layer with keys and values before it: got none; "
                             "give the first attention layer reuse_kv=False")
        k_BSGP, v_BSGP, start, window = shared["kv"]
        if k_BSGP.shape[2:] != (self.kv_heads, self.head_dim):
            raise ValueError(f"reuse_kv needs the kv_heads and head_dim of the layer before: got {self.kv_heads} and "
                             f"{self.head_dim} after {k_BSGP.shape[2]} and {k_BSGP.shape[3]}; give both the same")
        if self.window is not None:
            window = self.window if window is None else min(window, self.window)
        return k_BSGP, v_BSGP, start, window


class SingleValueAttention(nn.Module):
    """Queries and keys of its own to the values of the first attention layer, `shared["first_seen"]`.

    Its cache keeps keys alone; the values of cached tokens come with the new ones, from a layer with the same window.
    """

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None = None,
                 rope_base: float = 10000.0, rotary: bool = True, qk_norm: bool = False, bidirectional: bool = False,
                 sub_norm: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary, self.bidirectional = window, rope_base, rotary, bidirectional
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.key_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.sub_norm = LayerNormalisation(heads * head_dim) if sub_norm else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {"key": torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device), "position": 0}

    def forward(self, x_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        if "first_seen" not in shared:
            raise ValueError('value_residual="single" needs an attention layer with values before it: got none; use '
                             'Stack(layers, residual=ValueResidual("single"))')
        v_BSGP, start = shared["first_seen"], 0 if state is None else state["position"]
        q_BTHP = self.query(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        k_BSGP = self.key(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.query_norm is not None:
            q_BTHP = self.query_norm(q_BTHP)
        if self.key_norm is not None:
            k_BSGP = self.key_norm(k_BSGP)
        if self.rotary:
            cos_T1F, sin_T1F = rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BSGP = rotate(q_BTHP, cos_T1F, sin_T1F), rotate(k_BSGP, cos_T1F, sin_T1F)
        if state is not None:
            k_BSGP = torch.cat([state["key"], k_BSGP], dim=1)
        y_BTE = attend(q_BTHP, k_BSGP, v_BSGP, self.window, self.bidirectional).flatten(2)
        if self.sub_norm is not None:
            y_BTE = self.sub_norm(y_BTE)
        keep = k_BSGP.shape[1] if self.window is None else min(self.window - 1, k_BSGP.shape[1])
        return self.out(y_BTE), {"key": k_BSGP[:, k_BSGP.shape[1] - keep:], "position": start + x_BTD.shape[1]}
