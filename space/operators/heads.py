"""What operators with attention heads have in common."""

from __future__ import annotations

from typing import Any

from ..axes import Axis, Dim, Param, param
from .checks import require_divisor, require_whole

__all__ = ["check_heads", "head_size", "projections", "require_even"]


def head_size(config: Any, width: int) -> int:
    """`head_dim`, by default width / heads."""
    return int(config.head_dim or width // config.heads)


def check_heads(config: Any, width: int, where: str) -> None:
    """Raise ValueError unless `heads` and `head_dim` can be built."""
    require_whole("heads", config.heads, where)
    if config.head_dim is None:
        require_divisor("heads", config.heads, "width", width, where)
    else:
        require_whole("head_dim", config.head_dim, where)


def require_even(size: int, where: str) -> None:
    """Raise ValueError for a head that has no pairs to rotate."""
    if size % 2:
        raise ValueError(f"head_dim must be even, for pairs of rotary positions, at {where}: got {size}; "
                         f"use {size - 1 or 2} or {size + 1}")


def projections(d: Axis, queries: Axis | Dim, values: Axis | Dim) -> dict[str, Param]:
    """Queries, keys, values and the output, one key for every query."""
    return {"query.weight": param(queries, d), "key.weight": param(queries, d), "value.weight": param(values, d),
            "out.weight": param(d, values)}
