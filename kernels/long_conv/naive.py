"""Causal long convolution as the sum it is: the specification of `fft.py`.

Shape suffixes: B batch, T time, D channels, L taps of the filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_long_conv"]


def naive_long_conv(x_BTD: Tensor, filter_LD: Tensor) -> Tensor:
    """y_t = sum over j < L of filter_j x_{t-j}, per channel; what lies before the sequence is zero.

    Tap 0 weighs the current token. Keeps the dtype of x; T * L products, so for tests.
    """
    length = x_BTD.shape[1]
    outputs = []
    for t in range(length):
        taps = min(t + 1, filter_LD.shape[0])
        recent_BLD = x_BTD[:, t + 1 - taps : t + 1].flip(1)
        outputs.append((recent_BLD * filter_LD[:taps]).sum(dim=1))
    return torch.stack(outputs, dim=1)
