"""RMSNorm in plain torch: the specification of `triton.py`, and the code of every device without Triton.

Root mean square layer normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_add_rms_norm", "naive_rms_norm"]


def naive_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Everything is float32 (float64 for float64 inputs) and rounds once, to the dtype of x. For Gemma's convention
    pass 1 + weight.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def naive_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum rounded to the dtype of x: the norm sees the rounded sum."""
    total = x + residual
    return naive_rms_norm(total, weight, eps), total
