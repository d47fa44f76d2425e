"""Long convolution over a grid by FFT: a filter as large as the grid, O(H W log(H W)) per channel.

The functions use torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, H rows, W columns, D channels, F frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fft_grid_conv"]


def fft_grid_conv(x_BHWD: Tensor, filter_HWD: Tensor) -> Tensor:
    """y[r, c] = sum over i <= r and j <= c of filter[i, j] x[r - i, c - j], per channel, by transforms of doubled sides.

    Looks up and left only; flip the grid before and after for the other quadrants. The arithmetic is float32 (float64 for
    float64 inputs), as half precision transforms exist for few sizes; y has the dtype of x.
    """
    rows, columns = x_BHWD.shape[1:3]
    sides, dtype = (2 * rows, 2 * columns), torch.promote_types(x_BHWD.dtype, torch.float32)
    x_BDF = torch.fft.rfft2(x_BHWD.permute(0, 3, 1, 2).to(dtype), s=sides)
    filter_DF = torch.fft.rfft2(filter_HWD.permute(2, 0, 1).to(dtype), s=sides)
    y_BDHW: Tensor = torch.fft.irfft2(x_BDF * filter_DF, s=sides)[..., :rows, :columns]
    return y_BDHW.permute(0, 2, 3, 1).to(x_BHWD.dtype)
