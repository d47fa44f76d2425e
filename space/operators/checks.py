"""Checks that several operators share. Their text: what must hold, where, what was got, what to do."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["is_whole", "require_divisor", "require_positive", "require_whole"]


def is_whole(value: Any, low: int = 1) -> bool:
    """Whether `value` is an int (True is none) of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def require_whole(name: str, value: Any, where: str, low: int = 1, instead: str = "") -> None:
    """Raise ValueError unless `value` is an int of at least `low`; `instead` says what to write."""
    if not is_whole(value, low):
        hint = f"; {instead}" if instead else ""
        raise ValueError(f"{name} must be a whole number of at least {low} at {where}: got {value!r}{hint}")


def require_positive(name: str, value: Any, where: str, instead: str = "") -> None:
    """Raise ValueError unless `value` is a finite number above 0; `instead` says what to write."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        hint = f"; {instead}" if instead else ""
        raise ValueError(f"{name} must be a positive number at {where}: got {value!r}{hint}")


def require_divisor(name: str, value: int, whole_name: str, whole: int, where: str) -> None:
    """Raise ValueError unless `value` divides `whole`, naming the two nearest divisors."""
    if whole % value:
        divisors = [d for d in range(1, whole + 1) if whole % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - value))[:2])
        raise ValueError(f"{name} must divide {whole_name} at {where}: got {value} and {whole}; "
                         f"use {' or '.join(map(str, near))}")
