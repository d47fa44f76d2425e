"""Vector-decay linear recurrence, one token at a time: the specification of `chunked.py`.

Shape suffixes: B batch, T time, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_gated_linear"]


def naive_gated_linear(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTHK: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t, then o_t = scale * q_t S_t: decay before the write, read after it.

    Every tensor keeps the dtype it came in, so float64 is exact to rounding.

    Returns:
        The outputs o_BTHV and the state after the last token.
    """
    if state_BHKV is None:
        batch, _, heads, width = v_BTHV.shape
        state_BHKV = v_BTHV.new_zeros(batch, heads, q_BTHK.shape[-1], width)
    outputs = []
    for t in range(v_BTHV.shape[1]):
        write_BHKV = k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        state_BHKV = log_decay_BTHK[:, t, :, :, None].exp() * state_BHKV + write_BHKV
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q_BTHK[:, t], state_BHKV))
    return torch.stack(outputs, dim=1), state_BHKV
