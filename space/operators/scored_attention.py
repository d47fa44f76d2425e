"""Self-attention whose scores are written out, for everything that changes what happens between scores and outputs.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, R queries per key (H / G),
P head_dim, N persistent vectors, E channels of a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.short_conv.naive import causal_conv
from .causal_attention import rotate, rotation, visible, with_first_values
from .layernorm import LayerNormalisation
from .rmsnorm import RootMeanSquareNorm

__all__ = ["ScoredAttention", "centred_conv"]

SMALLEST_BLOCK = 64             # queries at a time where a window is smaller


def centred_conv(x_BTE: Tensor, taps_EW: Tensor) -> Tensor:
    """As many taps before a token as after it, per channel; zeros outside the sequence."""
    channels, width = taps_EW.shape
    y_BE1T = F.conv2d(x_BTE.transpose(1, 2)[:, :, None], taps_EW[:, None, None], padding=(0, width // 2), groups=channels)
    return y_BE1T[:, :, 0].transpose(1, 2)


class ScoredAttention(nn.Module):
    """Attention in steps: projections, their convolution, norms, rotation, cache; scores, position, weights, values; gate.

    position: a module that adds to the scores, or None. `scale` multiplies products of queries and keys. The cache keeps
    keys and values, with a window only the last `window` of them, and the past of the convolution.
    """

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, scale: float, window: int | None = None,
                 rope_base: float = 10000.0, rotary: bool = False, qk_norm: bool = False, value_residual: bool = False,
                 bidirectional: bool = False, position: nn.Module | None = None, persistent: int = 0,
                 gate: str | None = None, clip: tuple[float, float] = (0.0, 1.0), temperature: bool = False,
                 conv: int | None = None, symmetric: bool = False, sink: bool = False, shaped: bool = False,
                 relu: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.scale = heads, kv_heads, head_dim, scale
        self.window, self.rope_base, self.rotary, self.bidirectional = window, rope_base, rotary, bidirectional
        self.clip_low, self.clip_high = clip
        self.shaped = shaped
        self.query = None if symmetric else nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.key_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.mix = nn.Parameter(torch.empty(2)) if value_residual else None
        self.query_taps = nn.Parameter(torch.empty(heads * head_dim, conv)) if conv and not symmetric else None
        self.key_taps = nn.Parameter(torch.empty(kv_heads * head_dim, conv)) if conv else None
        self.value_taps = nn.Parameter(torch.empty(kv_heads * head_dim, conv)) if conv else None
        self.position = position
        self.persistent_key = nn.Parameter(torch.empty(kv_heads, persistent, head_dim)) if persistent else None
        self.persistent_value = nn.Parameter(torch.empty(kv_heads, persistent, head_dim)) if persistent else None
        self.log_temperature = nn.Parameter(torch.empty(heads)) if temperature else None
        self.sink = nn.Parameter(torch.empty(heads)) if sink else None
        self.norm = LayerNormalisation(heads * head_dim) if relu else None
        self.head_gate = nn.Linear(width, heads) if gate == "head" else None
        self.channel_gate = nn.Linear(width, heads * head_dim) if gate == "channel" else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        state: dict[str, Any] = {"key": empty, "value": empty, "position": 0}
        if self.key_taps is not None:
            past = self.key_taps.shape[1] - 1
            keys = torch.zeros(batch, past, self.kv_heads * self.head_dim, dtype=dtype, device=device)
            state |= {"past_key": keys, "past_value": keys}
        if self.query_taps is not None:
            state["past_query"] = torch.zeros(batch, self.query_taps.shape[1] - 1, self.heads * self.head_dim, dtype=dtype,
                                              device=device)
        return state

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        start = 0 if state is None else state["position"]
        q_BTHP, k_BSGP, v_BSGP, pasts = self.projected(x_BTD, state, start)
        if shared is not None:
            shared.setdefault("first_value", v_BSGP)
        if self.mix is not None:
            v_BSGP = with_first_values(v_BSGP, self.mix, shared)
        if state is not None:
            k_BSGP = torch.cat([state["key"], k_BSGP], dim=1)
            v_BSGP = torch.cat([state["value"], v_BSGP], dim=1)
        if shared is not None:
            shared["kv"] = k_BSGP, v_BSGP, start, self.window
            shared.setdefault("first_seen", v_BSGP)
        y_BTE = self.attend(q_BTHP, k_BSGP, v_BSGP, start).flatten(2)
        if self.norm is not None:
            y_BTE = self.norm(y_BTE)
        if self.head_gate is not None:
            y_BTE = y_BTE * torch.sigmoid(self.head_gate(x_BTD)).repeat_interleave(self.head_dim, -1)
        if self.channel_gate is not None:
            y_BTE = y_BTE * torch.sigmoid(self.channel_gate(x_BTD))
        seen = k_BSGP.shape[1]
        first = 0 if self.window is None else max(seen - self.window + 1, 0)
        return self.out(y_BTE), {"key": k_BSGP[:, first:], "value": v_BSGP[:, first:],
                                 "position": start + x_BTD.shape[1], **pasts}

    def projected(self, x_BTD: Tensor, state: dict[str, Any] | None,
                  start: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Queries, keys and values of the new tokens by head, and the past of their convolutions."""
        k, v = self.key(x_BTD), self.value(x_BTD)
        q = k if self.query is None else self.query(x_BTD)
        pasts: dict[str, Tensor] = {}
        if self.key_taps is not None and self.value_taps is not None:
            k = self.convolved("key", k, self.key_taps, state, pasts)
            v = self.convolved("value", v, self.value_taps, state, pasts)
            q = k if self.query_taps is None else self.convolved("query", q, self.query_taps, state, pasts)
        q_BTHP, k_BTGP = q.unflatten(-1, (self.heads, self.head_dim)), k.unflatten(-1, (self.kv_heads, self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHP, k_BTGP = self.query_norm(q_BTHP), self.key_norm(k_BTGP)
        if self.rotary:
            turn = rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BTGP = rotate(q_BTHP, *turn), rotate(k_BTGP, *turn)
        return q_BTHP, k_BTGP, v.unflatten(-1, (self.kv_heads, self.head_dim)), pasts

    def convolved(self, name: str, x_BTE: Tensor, taps_EW: Tensor, state: dict[str, Any] | None,
                  pasts: dict[str, Tensor]) -> Tensor:
        if self.bidirectional:
            return centred_conv(x_BTE, taps_EW)
        y_BTE, pasts[f"past_{name}"] = causal_conv(x_BTE, taps_EW, None if state is None else state[f"past_{name}"])
        return y_BTE

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, start: int) -> Tensor:
        """Weights of all visible and persistent keys times their values, [B, T, H, P]; in blocks with a causal window, which
        takes time and memory linear in T."""
        new, window = q_BTHP.shape[1], self.window
        if window is None or self.bidirectional or new <= 2 * window:
            return self.attend_block(q_BTHP, k_BSGP, v_BSGP, start)
        rows, before, block = [], k_BSGP.shape[1] - new, max(window, SMALLEST_BLOCK)
        for first in range(0, new, block):
            last, low = min(first + block, new), max(0, before + first - window + 1)
            rows.append(self.attend_block(q_BTHP[:, first:last], k_BSGP[:, low:before + last], v_BSGP[:, low:before + last],
                                          start + first))
        return torch.cat(rows, dim=1)

    def attend_block(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, start: int) -> Tensor:
        """`attend` with all pairs of the T newest of S tokens."""
        new, seen = q_BTHP.shape[1], k_BSGP.shape[1]
        if self.log_temperature is not None:
            q_BTHP = q_BTHP * torch.exp(-self.log_temperature).repeat_interleave(self.head_dim).view(-1, self.head_dim)
        q = self.scale * torch.unflatten(q_BTHP, 2, (self.kv_heads, -1))                                 # [B, T, G, R, P]
        score = torch.matmul(q.permute(0, 2, 3, 1, 4), k_BSGP.permute(0, 2, 3, 1)[:, :, None])    # [B, G, R, T, S]
        if self.position is not None:
            score = self.position(score, q, k_BSGP, start, self.scale)
        mask_TS = visible(new, seen, self.window, self.bidirectional, score.device)
        if mask_TS is not None:
            score = score.masked_fill(~mask_TS, -torch.inf)
        v_BG1SP = v_BSGP.permute(0, 2, 1, 3)[:, :, None]
        if self.persistent_key is not None and self.persistent_value is not None:
            always = torch.matmul(q.permute(0, 2, 3, 1, 4), self.persistent_key.mT[:, None])
            v_GNP = self.persistent_value.expand(len(q), -1, -1, -1)[:, :, None]
            score, v_BG1SP = torch.cat([score, always], -1), torch.cat([v_BG1SP, v_GNP], -2)
        y_BGRTP = torch.matmul(self.weights(score), v_BG1SP)
        if self.shaped:
            y_BGRTP = y_BGRTP + self.shape_terms(v_BSGP, new, mask_TS)
        return y_BGRTP.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def weights(self, score: Tensor) -> Tensor:
        """The softmax, or what stands for it."""
        if self.norm is not None:
            return F.relu(score)
        if self.sink is not None:
            sink = self.sink.view(self.kv_heads, -1, 1, 1).expand(*score.shape[:-1], 1)
            weight = torch.softmax(torch.cat([score, sink], -1), -1)[..., :-1]
        else:
            weight = torch.softmax(score, -1)
        if self.clip_low < 0 or self.clip_high > 1:
            weight = ((self.clip_high - self.clip_low) * weight + self.clip_low).clamp(0, 1)
        return weight

    def shape_terms(self, v_BSGP: Tensor, new: int, mask_TS: Tensor | None) -> Tensor:
        """The token's own value minus the mean of the values it sees."""
        v_BG1SP = v_BSGP.permute(0, 2, 1, 3)[:, :, None]
        if mask_TS is None:
            return v_BG1SP[..., -new:, :] - v_BG1SP.mean(-2, keepdim=True)
        share_TS = mask_TS.to(v_BSGP.dtype)
        return v_BG1SP[..., -new:, :] - torch.matmul(share_TS / share_TS.sum(-1, keepdim=True), v_BG1SP)
