"""Gated delta rule, one token at a time: the specification of `chunked.py`.

Shape suffixes: B batch, T time, H heads, G query/key groups (H a multiple of G), K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_gated_delta"]


def naive_gated_delta(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S' = exp(g_t) S_{t-1}; S_t = S' + beta_t k_t^T (v_t - k_t S'); o_t = scale * q_t S_t.

    Head h reads group h // (H / G) of q and k. Every tensor keeps the dtype it came in, so float64 is exact to
    rounding. The keys are used as given: normalise them before.

    Returns:
        The outputs o_BTHV and the state after the last token.
    """
    per_group = v_BTHV.shape[2] // q_BTGK.shape[2]
    q_BTHK = q_BTGK.repeat_interleave(per_group, dim=2)
    k_BTHK = k_BTGK.repeat_interleave(per_group, dim=2)
    if state_BHKV is None:
        batch, _, heads, width = v_BTHV.shape
        state_BHKV = v_BTHV.new_zeros(batch, heads, q_BTGK.shape[-1], width)
    outputs = []
    for t in range(v_BTHV.shape[1]):
        state_BHKV = log_decay_BTH[:, t, :, None, None].exp() * state_BHKV
        error_BHV = v_BTHV[:, t] - torch.einsum("bhk,bhkv->bhv", k_BTHK[:, t], state_BHKV)
        write_BHV = beta_BTH[:, t, :, None] * error_BHV
        state_BHKV = state_BHKV + k_BTHK[:, t, :, :, None] * write_BHV[:, :, None, :]
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q_BTHK[:, t], state_BHKV))
    return torch.stack(outputs, dim=1), state_BHKV
