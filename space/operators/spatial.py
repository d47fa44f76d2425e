"""What operators on grids have in common.

Legend: B batch, H and W rows and columns of tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..operator import Length
from .checks import require_whole

__all__ = ["as_grid", "grid_of", "require_odd", "rounded_up"]


def as_grid(x: Tensor) -> Tensor:
    """A sequence [B, T, D] as a grid of one column, [B, T, 1, D]; a grid [B, H, W, D] as it is."""
    return x[:, :, None] if x.ndim == 3 else x


def grid_of(length: Length) -> tuple[int, int]:
    """(height, width) in tokens; a number of tokens is a grid of one column."""
    return length if isinstance(length, tuple) else (length, 1)


def rounded_up(size: int, block: int) -> int:
    """The smallest multiple of `block` that holds `size`."""
    return -(-size // block) * block


def require_odd(name: str, value: Any, where: str) -> None:
    """Raise ValueError unless `value` is an odd whole number, so that a kernel has a centre."""
    require_whole(name, value, where)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd at {where}: got {value}; use {value - 1} or {value + 1}")
