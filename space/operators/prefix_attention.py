"""Attention of tokens to streams of tokens behind a prefix that all of them see.

Legend: B batch, T new tokens, S tokens of a stream, N tokens of the prefix, D width, H heads, P head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from .causal_attention import rotate, rotation

__all__ = ["PersistentAttention", "prefix_axes", "prefix_pairs"]

SMALLEST_BLOCK = 64             # queries at a time where a window is smaller


def prefix_axes(width: int, heads: int, head_dim: int, persistent: int) -> dict[str, Param]:
    """Parameters of `PersistentAttention` without its own name before them."""
    d, h = axis("width", width), axis("attention_heads", heads)
    turned, plain = h * axis("half", 2) * axis("pairs", head_dim // 2), h * axis("head_dim", head_dim)
    declared = {"query.weight": param(turned, d), "key.weight": param(turned, d), "value.weight": param(plain, d),
                "out.weight": param(d, plain)}
    if persistent:
        declared["persistent"] = param(axis("persistent", persistent), d, init=Init("normal", gain=0.02))
    return declared


def prefix_pairs(tokens: int, window: int | None) -> int:
    """Pairs of a token and those up to it, at most `window` of them, over `tokens` tokens."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


class PersistentAttention(nn.Module):
    """Softmax attention with rotary positions; the prefix begins with learned tokens at positions 0, 1, ..."""

    def __init__(self, width: int, heads: int, head_dim: int, rope_base: float, persistent: int):
        super().__init__()
        self.heads, self.head_dim, self.rope_base = heads, head_dim, rope_base
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.persistent = nn.Parameter(torch.empty(persistent, width)) if persistent else None

    def learned(self, like_BTD: Tensor) -> Tensor:
        """The learned tokens of every sequence, [B, N, D]."""
        if self.persistent is None:
            return like_BTD[:, :0]
        return self.persistent.to(like_BTD.dtype).repeat(len(like_BTD), 1, 1)

    def prefix(self, like_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the learned tokens, [B, N, H, P] each, which are the same for every sequence."""
        key_1NHP, value_1NHP = self.keys_values(self.learned(like_BTD[:1]), 0)
        return key_1NHP.expand(len(like_BTD), -1, -1, -1), value_1NHP.expand(len(like_BTD), -1, -1, -1)

    def keys_values(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens, the first of them at position `start`."""
        value_BTHP = self.value(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        return self.turned(self.key(x_BTD), start), value_BTHP

    def turned(self, x_BTE: Tensor, start: int) -> Tensor:
        """By head, rotated by their positions."""
        x_BTHP = torch.unflatten(x_BTE, -1, (self.heads, self.head_dim))
        return rotate(x_BTHP, *rotation(start, x_BTE.shape[1], self.head_dim // 2, self.rope_base, x_BTE))

    def empty(self, batch: int, dtype: torch.dtype, device: Any) -> Tensor:
        """Keys or values of no tokens."""
        return torch.zeros(batch, 0, self.heads, self.head_dim, dtype=dtype, device=device)

    def forward(self, x_BTD: Tensor, start: int, prefix: tuple[Tensor, Tensor], streams: list[tuple[Tensor, Tensor]],
                window: int | None = None) -> Tensor:
        """The new tokens, the first at position `start`, over the prefix and the tokens up to their own in every stream.

        streams: keys and values, the newest T being those that stand beside the new tokens; all have S tokens.
        """
        q_BTHP, new, seen = self.turned(self.query(x_BTD), start), x_BTD.shape[1], streams[0][0].shape[1]
        block, rows = new if window is None else max(window, SMALLEST_BLOCK), []
        for first in range(0, new, max(block, 1)):
            last = min(first + block, new)
            low = 0 if window is None else max(0, seen - new + first - window + 1)
            near = [(k[:, low:seen - new + last], v[:, low:seen - new + last]) for k, v in streams]
            rows.append(self.attended(q_BTHP[:, first:last], prefix, near, window))
        return self.out(torch.cat(rows, 1).flatten(2))  # type: ignore[no-any-return]

    def attended(self, q_BTHP: Tensor, prefix: tuple[Tensor, Tensor], streams: list[tuple[Tensor, Tensor]],
                 window: int | None) -> Tensor:
        """`forward` by head, with all pairs."""
        new, seen = q_BTHP.shape[1], streams[0][0].shape[1]
        ahead_TS = torch.arange(seen, device=q_BTHP.device) - torch.arange(seen - new, seen, device=q_BTHP.device)[:, None]
        mask_TS = ahead_TS <= 0 if window is None else (ahead_TS <= 0) & (ahead_TS > -window)
        always_TN = torch.ones(new, prefix[0].shape[1], dtype=torch.bool, device=q_BTHP.device)
        mask = torch.cat([always_TN, *[mask_TS for _ in streams]], 1)
        k, v = (torch.cat([prefix[n], *[stream[n] for stream in streams]], 1).transpose(1, 2) for n in (0, 1))
        return F.scaled_dot_product_attention(q_BTHP.transpose(1, 2), k, v, attn_mask=mask).transpose(1, 2)
