"""Trained networks as others that start from their weights, whatever that does to the function.

    heads        fewer key/value heads; heads that tokens choose; attention as a gated recurrence
    depth        layers more, which pass the stream through or repeat others, and layers less
    spans        layers as one linear map inside the matrix before them
    inheriting   any architecture from any other's weights: what the search goes by
    converting   what all share: exchanging operators, and how far outputs move

Conversions that leave the function as it is are in `equivalents`.
"""

from __future__ import annotations

from .converting import difference
from .depth import (
    appended_layers,
    block_importance,
    closest_span,
    dropped_layers,
    duplicated_layers,
    injected_layers,
    rearranged,
)
from .heads import grouped_heads, linearised, routed_heads
from .inheriting import inherited
from .spans import linear_span

__all__ = ["appended_layers", "block_importance", "closest_span", "difference", "dropped_layers", "duplicated_layers",
           "grouped_heads", "inherited", "injected_layers", "linear_span", "linearised", "rearranged", "routed_heads"]
