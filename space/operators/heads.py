"""What operators with attention heads have in common, beside `windows.check_heads` and `windows.head_size`."""

from __future__ import annotations

from ..axes import Axis, Dim, Param, param

__all__ = ["projections_of", "require_even"]


def require_even(size: int, where: str) -> None:
    """Raise ValueError for a head that has no pairs to rotate."""
    if size % 2:
        raise ValueError(f"head_dim must be even, for pairs of rotary positions, at {where}: got {size}; "
                         f"use {size - 1 or 2} or {size + 1}")


def projections_of(d: Axis, queries: Axis | Dim, values: Axis | Dim) -> dict[str, Param]:
    """Queries, keys, values and the output, one key for every query, by the axes of what is inside."""
    return {"query.weight": param(queries, d), "key.weight": param(queries, d), "value.weight": param(values, d),
            "out.weight": param(d, values)}
