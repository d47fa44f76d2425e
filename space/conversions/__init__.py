"""Trained networks as others that start from their weights, whatever that does to the function.

    heads        fewer key/value heads; heads that tokens choose; attention as a gated recurrence
    converting   what all share: exchanging operators, and how far outputs move

Conversions that leave the function as it is are in `equivalents`.
"""

from __future__ import annotations

from .converting import difference
from .heads import grouped_heads, linearised, routed_heads

__all__ = ["difference", "grouped_heads", "linearised", "routed_heads"]
