"""Softmax attention of new tokens to cached ones and themselves.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, P head_dim.

Attention layers of one stream may hand things on in a dictionary `shared`, new in every pass. Whoever computes keys
and values publishes `kv`: keys after rotation and cache, values, the position of the first new token, the window; and,
where no layer did before, `first_value`, the values of the new tokens alone, and `first_seen`, values with the cached ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layernorm import LayerNormalisation
from .rmsnorm import RootMeanSquareNorm

__all__ = ["CausalAttention", "attend", "attend_banded", "attend_masked", "rotate", "rotation", "visible",
           "with_first_values"]


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


def attend(q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, window: int | None, bidirectional: bool = False) -> Tensor:
    """Softmax attention of the T newest of S tokens; each key serves the H / G queries of its group.

    Linear in T with a window.
    """
    new = q_BTHP.shape[1]
    if window is None or new <= 2 * window:
        return attend_masked(q_BTHP, k_BSGP, v_BSGP, window, bidirectional)
    rest, near = new % window, new + window - 1
    y_BTHP = attend_banded(q_BTHP[:, :new - rest], k_BSGP[:, -near:], v_BSGP[:, -near:], window, rest, bidirectional)
    if rest == 0:
        return y_BTHP
    near = rest + window - 1
    last_BTHP = attend_masked(q_BTHP[:, -rest:], k_BSGP[:, -near:], v_BSGP[:, -near:], window, bidirectional)
    return torch.cat([y_BTHP, last_BTHP], dim=1)


def attend_masked(q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, window: int | None, bidirectional: bool) -> Tensor:
    """`attend` over all pairs, those that are not to be seen masked."""
    new, seen = q_BTHP.shape[1], k_BSGP.shape[1]
    q, k, v = q_BTHP.transpose(1, 2), k_BSGP.transpose(1, 2), v_BSGP.transpose(1, 2)
    whole = window is None and new == seen
    mask_TS = None if whole else visible(new, seen, window, bidirectional, q.device)
    y_BHTP = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=False if bidirectional else whole,
                                            enable_gqa=q.shape[1] != k.shape[1])
    return y_BHTP.transpose(1, 2)


def attend_banded(q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, window: int, behind: int,
                  bidirectional: bool) -> Tensor:
    """`attend` of T tokens that fill blocks of `window`, each block with its own keys and those of the block before;
    bidirectional, also with those of the block behind. S is T, at most window - 1 tokens before and `behind` behind.

    Legend: N blocks, W queries of a block, S keys around a block, X sequences and blocks.
    """
    batch, length, heads, head_dim = q_BTHP.shape
    before, span = k_BSGP.shape[1] - length - behind, (3 if bidirectional else 2) * window
    ends = before + length + (behind if bidirectional else 0)
    pads = (0, 0, 0, 0, window - before, length + before + span - 2 * window - ends)
    q = q_BTHP.reshape(-1, window, heads, head_dim).transpose(1, 2)
    k, v = (F.pad(each[:, :ends], pads).unfold(1, span, window).flatten(0, 1).transpose(-1, -2)
            for each in (k_BSGP, v_BSGP))
    query_W1, key_S = torch.arange(window, device=q.device)[:, None], torch.arange(span, device=q.device)
    near_WS = (key_S > query_W1) & (key_S < query_W1 + span - window + (not bidirectional))
    at_N1S = key_S + torch.arange(length // window, device=q.device)[:, None, None] * window - window + before
    mask_NWS = near_WS & (at_N1S >= 0) & (at_N1S < k_BSGP.shape[1])
    y_XHWP = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NWS.repeat(batch, 1, 1)[:, None],
                                            enable_gqa=q.shape[1] != k.shape[1])
    return y_XHWP.transpose(1, 2).reshape(batch, length, heads, head_dim)


def visible(new: int, seen: int, window: int | None, bidirectional: bool, device: torch.device) -> Tensor | None:
    """Which keys each query sees, aligned at the newest token; None when a single query sees all."""
    if new == 1 and (window is None or seen <= window):
        return None
    query_T1 = torch.arange(seen - new, seen, device=device)[:, None]
    key_1S = torch.arange(seen, device=device)[None, :]
    if bidirectional:
        return None if window is None else (key_1S - query_T1).abs() < window
    mask_TS = key_1S <= query_T1
    return mask_TS if window is None else mask_TS & (key_1S > query_T1 - window)


class CausalAttention(nn.Module):
    """Causal self-attention. The cache keeps keys and values; with a window only the last `window` of them."""

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None = None,
                 rope_base: float = 10000.0, rotary: bool = True, qk_norm: bool = False, value_residual: bool = False,
                 half_first: bool = False, sub_norm: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary = window, rope_base, rotary
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.key_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.mix = nn.Parameter(torch.empty(2)) if value_residual else None
        self.half_first = half_first
        self.sub_norm = LayerNormalisation(heads * head_dim) if sub_norm else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty, "position": 0}

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        y_BTHP, new_state = self.by_head(x_BTD, state, shared)
        y_BTE = y_BTHP.reshape(*x_BTD.shape[:2], self.heads * self.head_dim)
        if self.sub_norm is not None:
            y_BTE = self.sub_norm(y_BTE)
        return self.out(y_BTE), new_state

    def by_head(self, x_BTD: Tensor, state: dict[str, Any] | None,
                shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """What each head gives, before the output projection, and the state after it."""
        start = 0 if state is None else state["position"]
        q_BTHP, k_BSGP, v_BSGP = self.new_tokens(x_BTD, start, shared)
        if state is not None:
            k_BSGP = torch.cat([state["key"], k_BSGP], dim=1)
            v_BSGP = torch.cat([state["value"], v_BSGP], dim=1)
        if shared is not None:
            shared["kv"] = k_BSGP, v_BSGP, start, self.window
            shared.setdefault("first_seen", v_BSGP)
        y_BTHP = self.attend(q_BTHP, k_BSGP, v_BSGP)
        keep = k_BSGP.shape[1] if self.window is None else min(self.window - 1, k_BSGP.shape[1])
        new_state = {"key": k_BSGP[:, k_BSGP.shape[1] - keep:], "value": v_BSGP[:, v_BSGP.shape[1] - keep:],
                     "position": start + x_BTD.shape[1]}
        return y_BTHP, new_state

    def new_tokens(self, x_BTD: Tensor, start: int,
                   shared: dict[str, Any] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the new tokens, the values mixed with the first layer's where that is asked."""
        q_BTHP, k_BTGP, v_BTGP = self.projected(x_BTD, start)
        if shared is not None:
            shared.setdefault("first_value", v_BTGP)
        if self.mix is not None:
            v_BTGP = with_first_values(v_BTGP, self.mix, shared)
        if self.half_first:
            v_BTGP = with_first_values(v_BTGP, (0.5, 0.5), shared)
        return q_BTHP, k_BTGP, v_BTGP

    def projected(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the new tokens, the first of them at position `start`."""
        batch, length, _ = x_BTD.shape
        q_BTHP = self.query(x_BTD).view(batch, length, self.heads, self.head_dim)
        k_BTGP = self.key(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        v_BTGP = self.value(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        if self.query_norm is not None:
            q_BTHP = self.query_norm(q_BTHP)
        if self.key_norm is not None:
            k_BTGP = self.key_norm(k_BTGP)
        if self.rotary:
            cos_T1F, sin_T1F = rotation(start, length, self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BTGP = rotate(q_BTHP, cos_T1F, sin_T1F), rotate(k_BTGP, cos_T1F, sin_T1F)
        return q_BTHP, k_BTGP, v_BTGP

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, self.window)


def with_first_values(v_BTGP: Tensor, mix: Any, shared: dict[str, Any] | None) -> Tensor:
    """`mix[0]` of these values and `mix[1]` of those of the first attention layer."""
    if shared is None:
        raise ValueError("value_residual mixes in the values of the first attention layer, which layers must hand on: "
                         "got no shared dictionary; use a body that shares, Stack(..., residual=ValueResidual())")
    first_BTGP: Tensor = shared["first_value"]
    if first_BTGP.shape != v_BTGP.shape:
        raise ValueError(f"value_residual mixes values of one shape: got [kv_heads, head_dim] {list(v_BTGP.shape[2:])} "
                         f"after {list(first_BTGP.shape[2:])}; give these layers the same, or one tied(...) choice")
    mixed_BTGP: Tensor = mix[0] * v_BTGP + mix[1] * first_BTGP
    return mixed_BTGP
