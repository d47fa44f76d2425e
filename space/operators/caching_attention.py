"""Causal attention whose cache holds a number of tokens that does not grow.

Legend: B batch, T new tokens, S tokens read, D width, H query heads, G key/value heads, R queries per key (H / G),
P head_dim, N tokens kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .causal_attention import CausalAttention
from .nprf import uniform_numbers

__all__ = ["CachingAttention", "gumbel_noise"]

ROWS = 256


def gumbel_noise(heads: int, first: int, queries: int, keys: int, seed: int, like: Tensor) -> Tensor:
    """Numbers that pass for independent Gumbel ones, [H, T, S], each a function of head, query, key and seed alone.

    first: the position of the first query.
    """
    h, s = (torch.arange(size, device=like.device, dtype=torch.int64) for size in (heads, keys))
    t_T1 = torch.arange(first, first + queries, device=like.device, dtype=torch.int64)[:, None]
    place_HTS = ((t_T1 * 1000003 + h[:, None, None]) * 1000003 + s) ^ (seed * 7919)
    uniform_HTS = uniform_numbers(place_HTS ^ (place_HTS >> 29), 0x9E3779B9, like.dtype)
    return -(-uniform_HTS.clamp(1e-9, 1 - 1e-7).log()).log()


class CachingAttention(CausalAttention):
    """Causal attention that keeps `budget` tokens for each key/value head once `limit` have come.

    kept_first, kept_last: of the oldest and the newest tokens, never dropped; the others stay by the sum of the weights that
    queries gave them, where `scored`, with the softmax of noisy scores where `noise` is given: (temperature at first, at
    last, tokens until then, seed). Until the cache is full many tokens go through at once, then one after the other.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, rope_base: float, rotary: bool, qk_norm: bool,
                 value_residual: bool, half_first: bool, sub_norm: bool, budget: int, limit: int, kept_first: int,
                 kept_last: int, scored: bool, noise: tuple[float, float, int, int] | None):
        super().__init__(width, heads, kv_heads, head_dim, None, rope_base, rotary, qk_norm, value_residual, half_first,
                         sub_norm)
        self.budget, self.limit, self.kept_first, self.kept_last = budget, limit, kept_first, kept_last
        self.scored, self.noise = scored, noise

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        state: dict[str, Any] = {"key": empty, "value": empty, "position": 0}
        if self.scored:
            state["score"] = torch.zeros(batch, 0, self.kv_heads, dtype=torch.promote_types(dtype, torch.float32),
                                         device=device)
        return state

    def by_head(self, x_BTD: Tensor, state: dict[str, Any] | None,
                shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """What each head gives, before the output projection, and the state after it."""
        state = self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device) if state is None else state
        q_BTHP, k_BTGP, v_BTGP = self.new_tokens(x_BTD, state["position"], shared)
        filling = min(max(self.limit - state["position"], 1), x_BTD.shape[1])
        outputs: list[Tensor] = []
        first = 0
        for last in (filling, *range(filling + 1, x_BTD.shape[1] + 1)):
            y_BTHP, state = self.read(q_BTHP[:, first:last], k_BTGP[:, first:last], v_BTGP[:, first:last], state)
            outputs.append(y_BTHP)
            first = last
        return torch.cat(outputs, dim=1), state

    def read(self, q_BTHP: Tensor, k_BTGP: Tensor, v_BTGP: Tensor,
             state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """New tokens that are kept until the last of them has been read; then the cache is cut."""
        start, after = state["position"], state["position"] + q_BTHP.shape[1]
        k_BSGP = torch.cat([state["key"], k_BTGP], dim=1)
        v_BSGP = torch.cat([state["value"], v_BTGP], dim=1)
        new_state = {"key": k_BSGP, "value": v_BSGP, "position": after}
        if self.scored:
            score_BSG = self.scores(q_BTHP.detach(), k_BSGP.detach(), start)
            score_BSG[:, :-q_BTHP.shape[1]] += state["score"]
            new_state["score"] = score_BSG
        y_BTHP = self.attend(q_BTHP, k_BSGP, v_BSGP)
        return y_BTHP, self.cut(new_state) if after >= self.limit else new_state

    def scores(self, q_BTHP: Tensor, k_BSGP: Tensor, start: int) -> Tensor:
        """The weights that the new queries give to what they read, summed over queries, [B, S, G]."""
        new, seen = q_BTHP.shape[1], k_BSGP.shape[1]
        place_S, found = torch.arange(seen, device=q_BTHP.device), []
        for first in range(0, new, ROWS):
            q_BTGRP = torch.unflatten(q_BTHP[:, first:first + ROWS], 2, (self.kv_heads, -1))
            logit = torch.matmul(q_BTGRP.permute(0, 2, 3, 1, 4), k_BSGP.permute(0, 2, 3, 1)[:, :, None])
            logit = logit.to(torch.promote_types(logit.dtype, torch.float32)) / math.sqrt(self.head_dim)  # [B, G, R, T, S]
            if self.noise is not None:
                cold, warm, horizon, seed = self.noise
                rows = q_BTGRP.shape[1]
                noise_HTS = gumbel_noise(self.heads, start + first, rows, seen, seed, logit)
                risen = min(max(start - self.limit + 1, 0), horizon) / horizon
                logit = (logit + noise_HTS.view(self.kv_heads, -1, rows, seen)) / (cold + (warm - cold) * risen)
            own_T1 = torch.arange(seen - new + first, seen - new + first + q_BTGRP.shape[1], device=q_BTHP.device)[:, None]
            weight = logit.masked_fill(place_S > own_T1, -torch.inf).softmax(-1)
            found.append(weight.sum((2, 3)).transpose(1, 2))
        return sum(found[1:], start=found[0])

    def cut(self, state: dict[str, Any]) -> dict[str, Any]:
        """What stays of a full cache, in the order it came."""
        seen = state["key"].shape[1]
        if seen <= self.budget:
            return state
        place_S1 = torch.arange(seen, device=state["key"].device)[:, None]
        stays_S1 = (place_S1 < self.kept_first) | (place_S1 >= seen - self.kept_last)
        rank_BSG = state.get("score", torch.zeros_like(state["key"][..., 0])).masked_fill(stays_S1, torch.inf)
        kept_BNG = rank_BSG.topk(self.budget, dim=1).indices.sort(dim=1).values
        index = kept_BNG[..., None].expand(-1, -1, -1, self.head_dim)
        new_state = {"key": state["key"].gather(1, index), "value": state["value"].gather(1, index),
                     "position": state["position"]}
        return new_state | {"score": state["score"].gather(1, kept_BNG)} if self.scored else new_state
