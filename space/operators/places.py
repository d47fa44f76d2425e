"""Places as sines and cosines.

Legend: T places, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sine_places"]


def sine_places(places: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines in turn, at frequencies that fall from 1 to 1 / 10,000 (Vaswani et al., 2017): [places, width]."""
    dtype, device = torch.promote_types(like.dtype, torch.float32), like.device
    turn_D = 10000.0 ** (-2 * torch.arange(width, dtype=dtype, device=device).div(2).floor() / width)
    angle_TD = torch.arange(places, dtype=dtype, device=device)[:, None] * turn_D
    is_even_D = torch.arange(width, device=like.device) % 2 == 0
    return torch.where(is_even_D, angle_TD.sin(), angle_TD.cos()).to(like.dtype)
