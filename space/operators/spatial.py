"""What operators on grids have in common.

Legend: B batch, H and W rows and columns of tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..operator import Length
from .checks import require_whole

__all__ = ["as_grid", "grid_of", "padding", "require_odd", "rounded_up", "shaped_like"]


def as_grid(x: Tensor) -> Tensor:
    """A sequence [B, T, D] as a grid of one column, [B, T, 1, D]; a grid [B, H, W, D] as it is."""
    return x[:, :, None] if x.ndim == 3 else x


def shaped_like(x: Tensor, y_BHWE: Tensor) -> Tensor:
    """Undo `as_grid(x)` on a grid of any size: a sequence [B, S, E] where `x` is one, else the grid."""
    return y_BHWE[:, :, 0] if x.ndim == 3 else y_BHWE


def grid_of(length: Length) -> tuple[int, int]:
    """(height, width) in tokens; a number of tokens is a grid of one column."""
    return length if isinstance(length, tuple) else (length, 1)


def rounded_up(size: int, block: int) -> int:
    """The smallest multiple of `block` that holds `size`."""
    return -(-size // block) * block


def padding(size: int, stride: int, kernel: int) -> tuple[int, int]:
    """Zeros before and after, so that ceil(size / stride) positions come out, the window centred as far as it can be."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    before = min((kernel - stride + 1) // 2, total) if kernel > stride else 0
    return before, total - before


def require_odd(name: str, value: Any, where: str) -> None:
    """Raise ValueError unless `value` is an odd whole number, so that a kernel has a centre."""
    require_whole(name, value, where)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd at {where}: got {value}; use {value - 1} or {value + 1}")
