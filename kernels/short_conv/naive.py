"""Causal depthwise convolution over the last few tokens, with its state.

The short convolution before the recurrence in Mamba-2, Gated DeltaNet and Hyena. One torch operator serves every
device, so the fast form and the specification are the same function. It uses torch alone, so that an exported model
can carry its source.

Shape suffixes: B batch, T time, D channels, W taps of the filter (a history holds the last W - 1 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["causal_conv"]


def causal_conv(x_BTD: Tensor, weight_DW: Tensor, history_BWD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = sum over j < W of weight_j x_{t-W+1+j}, per channel: the last tap weighs the current token.

    A height of 1 makes it a two-dimensional convolution, because on a CPU only those read x as it lies, channels
    last; conv1d is slower. One token is a product and a sum, without a convolution's set-up.

    Args:
        history_BWD: the W - 1 inputs before the first token, oldest first; None stands for zeros.

    Returns:
        y_BTD in the dtype of x, and the history for the tokens that follow: [B, W - 1, D], its own memory, so that
        a decoder keeps W - 1 tokens and not the whole prompt.
    """
    batch, length, channels = x_BTD.shape
    taps = weight_DW.shape[1]
    if history_BWD is None:
        history_BWD = x_BTD.new_zeros(batch, taps - 1, channels)
    padded_BTD = torch.cat([history_BWD.to(x_BTD.dtype), x_BTD], dim=1)
    if length == 1:
        return (padded_BTD * weight_DW.t()).sum(dim=1, keepdim=True), padded_BTD[:, 1:].clone()
    if taps > 8 and x_BTD.device.type == "cpu" and x_BTD.dtype in (torch.float16, torch.bfloat16):
        # torch 2.13 does not come back there from some filters of that length in half precision.
        padded_BTD, weight_DW = padded_BTD.float(), weight_DW.float()
    y_BD1T = F.conv2d(padded_BTD.transpose(1, 2)[:, :, None], weight_DW[:, None, None], groups=channels).to(x_BTD.dtype)
    return y_BD1T[:, :, 0].transpose(1, 2), padded_BTD[:, length:].to(x_BTD.dtype, copy=True)
