"""Attention to chosen parts of a sequence: blocks gathered by index, windows block by block, a cache of all to choose from.

Legend: B batch, T new tokens, S tokens so far, D width, H heads, P head_dim, E any features, C blocks, N places of a block,
Q rows of an index, R blocks chosen by a row, M tokens of a block and those around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from .attention import rotate, rotation

__all__ = ["ROWS", "ROTARY", "CachedAttention", "blocks_begun", "check_even", "cut", "gathered", "rotary_projections",
           "window_around", "window_behind", "with_previous"]

ROWS = 256
ROTARY: Mapping[str, str] = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}


def cut(x_BHTE: Tensor, size: int) -> Tensor:
    """Consecutive blocks, [B, H, C, N, E]; zeros fill up the last."""
    x_BHTE = F.pad(x_BHTE, (0, 0, 0, -x_BHTE.shape[2] % size))
    return torch.unflatten(x_BHTE, 2, (x_BHTE.shape[2] // size, size))


def gathered(x_BHCNE: Tensor, index_BHQR: Tensor) -> Tensor:
    """The blocks that each row of an index names, one after the other: [B, H, Q, R * N, E].

    An index of one head serves all of them.
    """
    batch_B111 = torch.arange(x_BHCNE.shape[0], device=x_BHCNE.device)[:, None, None, None]
    head_H11 = torch.arange(x_BHCNE.shape[1], device=x_BHCNE.device)[:, None, None]
    return x_BHCNE[batch_B111, head_H11, index_BHQR].flatten(3, 4)


def with_previous(x_BHCNE: Tensor) -> Tensor:
    """Each block behind the one before it, [B, H, C, 2 N, E]; zeros before the first."""
    return torch.cat([F.pad(x_BHCNE, (0, 0, 0, 0, 1, -1)), x_BHCNE], dim=3)


def window_behind(q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor, window: int) -> Tensor:
    """Every token reads itself and the `window` - 1 before it, chunk by chunk."""
    length, steps_M = q_BHTP.shape[2], torch.arange(2 * window, device=q_BHTP.device)
    q, k, v = (cut(part, window) for part in (q_BHTP, k_BHTP, v_BHTP))
    back_NM = window + steps_M[:window, None] - steps_M
    chunk_C11 = torch.arange(q.shape[2], device=q_BHTP.device)[:, None, None]
    is_read_CNM = (back_NM >= 0) & (back_NM < window) & ((chunk_C11 > 0) | (steps_M >= window))
    logits = (q @ with_previous(k).transpose(3, 4) * q.shape[-1] ** -0.5).masked_fill(~is_read_CNM, -torch.inf)
    y_BHTP: Tensor = (logits.softmax(-1) @ with_previous(v)).flatten(2, 3)[:, :, :length]
    return y_BHTP


def window_around(q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor, window: int) -> Tensor:
    """Every token reads those fewer than `window` places away on both sides."""
    length, steps_M = q_BHTP.shape[2], torch.arange(3 * window, device=q_BHTP.device)
    q, k, v = (cut(part, window) for part in (q_BHTP, k_BHTP, v_BHTP))
    k, v = (torch.cat([with_previous(part), F.pad(part, (0, 0, 0, 0, -1, 1))], dim=3) for part in (k, v))
    back_NM = window + steps_M[:window, None] - steps_M
    place_CM = (torch.arange(q.shape[2], device=q_BHTP.device)[:, None] - 1) * window + steps_M
    is_read_CNM = (back_NM.abs() < window) & ((place_CM >= 0) & (place_CM < length))[:, None]
    # What fills up the last chunk reads itself, so that it is finite.
    logits = (q @ k.transpose(3, 4) * q.shape[-1] ** -0.5).masked_fill(~(is_read_CNM | (back_NM == 0)), -torch.inf)
    y_BHTP: Tensor = (logits.softmax(-1) @ v).flatten(2, 3)[:, :, :length]
    return y_BHTP


def blocks_begun(length: int, block: int, most: int | None = None) -> int:
    """The sum over tokens t of the blocks that have begun by then, t // block + 1, each at most `most`."""
    full, rest = divmod(length, block)
    most = full + 1 if most is None else most
    whole = min(most, full)
    return block * (whole * (whole + 1) // 2 + (full - whole) * most) + rest * min(most, full + 1)


class CachedAttention(nn.Module):
    """Causal attention with a cache of all keys and values; a subclass says in `attend` what a query reads of them.

    `attend(q_BHTP, k_BHSP, v_BHSP)` has the T newest of S tokens as queries and gives [B, H, T, P].
    """

    def __init__(self, width: int, heads: int, head_dim: int, rotary: bool, rope_base: float):
        super().__init__()
        self.heads, self.head_dim, self.rotary, self.rope_base = heads, head_dim, rotary, rope_base
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, self.heads, 0, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Attend from T new tokens to the cached ones and themselves."""
        q, k, v, state = self.extended(x_BTD, state)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2)), state

    def extended(self, x_BTD: Tensor,
                 state: dict[str, Tensor] | None) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Queries of the new tokens, keys and values of all, [B, H, T or S, P], and the cache with them."""
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim))
                   for project in (self.query, self.key, self.value))
        if self.rotary:
            start = 0 if state is None else state["key"].shape[2]
            cos_T1F, sin_T1F = rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD)
            q, k = rotate(q, cos_T1F, sin_T1F), rotate(k, cos_T1F, sin_T1F)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if state is not None:
            k, v = torch.cat([state["key"], k], dim=2), torch.cat([state["value"], v], dim=2)
        return q, k, v, {"key": k, "value": v}

    def attend(self, q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define attend(q, k, v)")


def rotary_projections(width: int, heads: int, head_dim: int) -> dict[str, Param]:
    """The matrices of `CachedAttention`."""
    d, h = axis("width", width), axis("heads", heads)
    values = h * axis("value_dim", head_dim)
    keys = h * axis("half", 2) * axis("pairs", head_dim // 2)
    return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
            "out.weight": param(d, values)}


def check_even(head_dim: int, where: str) -> None:
    """Raise ValueError where a head has an entry that is no part of a rotary pair."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions at {where}: got {head_dim}; use {head_dim + 1}")
