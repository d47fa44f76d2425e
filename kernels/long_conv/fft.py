"""Causal long convolution by FFT, O(T log T) per channel, and the newest output alone for decoding.

The convolution of Hyena (Poli et al. 2023, arXiv 2302.10866). The functions use torch alone, so that an exported
model can carry their source.

Shape suffixes: B batch, T time, D channels, L taps of the filter, F frequencies (T + 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fft_long_conv", "long_conv_step"]


def fft_long_conv(x_BTD: Tensor, filter_LD: Tensor) -> Tensor:
    """y_t = sum over j < L of filter_j x_{t-j}, per channel, by transforms of length 2T.

    Tap 0 weighs the current token; taps from T on have nothing to weigh. The doubled length keeps the end of the
    product from wrapping onto its beginning. The arithmetic is float32 (float64 for float64 inputs), as half
    precision transforms exist for few lengths; y has the dtype of x. Rounding is relative to the largest output of a
    channel, not to each output. Time is moved last because transforms run faster along adjacent numbers.
    """
    length = x_BTD.shape[1]
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    x_BDF = torch.fft.rfft(x_BTD.transpose(1, 2).to(dtype), n=2 * length)
    filter_DF = torch.fft.rfft(filter_LD[:length].t().to(dtype), n=2 * length)
    y_BDT: Tensor = torch.fft.irfft(x_BDF * filter_DF, n=2 * length)[..., :length]
    return y_BDT.transpose(1, 2).to(x_BTD.dtype)


def long_conv_step(history_BTD: Tensor, filter_LD: Tensor) -> Tensor:
    """The newest output, [B, 1, D], given all inputs so far including the newest: O(T), as no finite state exists."""
    taps = min(history_BTD.shape[1], filter_LD.shape[0])
    dtype = torch.promote_types(history_BTD.dtype, torch.float32)
    recent_BTD = history_BTD[:, -taps:].to(dtype)
    y_BD = torch.einsum("btd,td->bd", recent_BTD, filter_LD[:taps].flip(0).to(dtype))
    return y_BD[:, None].to(history_BTD.dtype)
