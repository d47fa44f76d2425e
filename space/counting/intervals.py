"""Intervals of what is estimated by drawing."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["proportion"]

STEPS = 60


def proportion(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """An interval of a probability from `hits` in `trials`: exact, never too short (Clopper and Pearson, 1934).

    Example:
        >>> low, high = proportion(0, 10)
        >>> low, round(high, 3)
        (0.0, 0.308)
    """
    side = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _root(lambda p: _at_least(hits, trials, p) - side)
    high = 1.0 if hits == trials else 1 - _root(lambda q: _at_least(trials - hits, trials, q) - side)
    return low, high


def _at_least(hits: int, trials: int, p: float) -> float:
    """The probability of `hits` or more in `trials` of probability `p`."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    ways = (math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(hits, trials + 1))
    return sum(math.exp(way + k * math.log(p) + (trials - k) * math.log1p(-p)) for k, way in enumerate(ways, hits))


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises from 0 to 1 crosses zero."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low
