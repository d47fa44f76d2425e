"""Attention whose queries, keys and values read streams of their own.

Legend: B batch, T new tokens, D width, E three widths, H query heads, G key/value heads, P head_dim.
"""

from __future__ import annotations

from torch import Tensor

from .causal_attention import CausalAttention, attend, rotate, rotation

__all__ = ["BidirectionalSeparateAttention", "SeparateAttention"]


class SeparateAttention(CausalAttention):
    """Causal self-attention of [B, T, 3 D]: what queries read, what keys read, what values read, side by side."""

    def projected(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the new tokens, the first of them at position `start`."""
        if x_BTD.shape[-1] != 3 * self.query.in_features:
            raise ValueError("separate needs streams for queries, keys and values, "
                             f"{3 * self.query.in_features} channels: got {x_BTD.shape[-1]}; "
                             "use Stack(layers, residual=DeepCrossAttention(separate=True))")
        query_BTD, key_BTD, value_BTD = x_BTD.chunk(3, dim=-1)
        q_BTHP = self.query(query_BTD).unflatten(-1, (self.heads, self.head_dim))
        k_BTGP = self.key(key_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        v_BTGP = self.value(value_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.query_norm is not None:
            q_BTHP = self.query_norm(q_BTHP)
        if self.key_norm is not None:
            k_BTGP = self.key_norm(k_BTGP)
        if self.rotary:
            cos_T1F, sin_T1F = rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BTGP = rotate(q_BTHP, cos_T1F, sin_T1F), rotate(k_BTGP, cos_T1F, sin_T1F)
        return q_BTHP, k_BTGP, v_BTGP


class BidirectionalSeparateAttention(SeparateAttention):
    """The same in which all tokens see each other; with a window those less than `window` apart."""

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, self.window, bidirectional=True)
