"""Selective scan, one token at a time: the specification of `chunked.py`.

Shape suffixes: B batch, T time, D channels, N states of a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_selective_scan"]


def naive_selective_scan(x_BTD: Tensor, *, dt_BTD: Tensor, A_DN: Tensor, b_BTN: Tensor, c_BTN: Tensor,
                         state_BDN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t b_t x_t, per channel and state; y_t = sum over N of c_t h_t.

    Every tensor keeps the dtype it came in, so float64 is exact to rounding.

    Returns:
        The outputs y_BTD and the state after the last token.
    """
    if state_BDN is None:
        state_BDN = x_BTD.new_zeros(len(x_BTD), *A_DN.shape)
    outputs = []
    for t in range(x_BTD.shape[1]):
        keep_BDN = torch.exp(dt_BTD[:, t, :, None] * A_DN)
        state_BDN = keep_BDN * state_BDN + (dt_BTD * x_BTD)[:, t, :, None] * b_BTN[:, t, None]
        outputs.append((state_BDN * c_BTN[:, t, None]).sum(-1))
    return torch.stack(outputs, dim=1), state_BDN
