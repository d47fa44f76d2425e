"""The vocabulary of a space: `choice`, `integer`, `real`, `subset`, `repeat`, `tied`.

Candidates of a choice may hold choices of their own: conditionality is nesting. Nothing here knows of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Choice", "Integer", "Real", "Repeat", "Subset", "Tied", "choice", "integer", "real", "repeat", "subset",
           "tied"]


@dataclass(frozen=True)
class Choice:
    """One of the candidates."""

    candidates: tuple[Any, ...]


@dataclass(frozen=True)
class Integer:
    """A whole number in `low, low + step, ..., high`."""

    low: int
    high: int
    step: int = 1

    @property
    def values(self) -> range:
        return range(self.low, self.high + 1, self.step)


@dataclass(frozen=True)
class Real:
    """A number in `[low, high]`; on a grid when `step` is given; uniform in the logarithm when `log`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def grid(self) -> list[float] | None:
        """The values of a stepped range, None for a continuous one."""
        if self.step is None:
            return None
        return [self.low + i * self.step for i in range(int((self.high - self.low) / self.step + 1e-9) + 1)]


@dataclass(frozen=True)
class Subset:
    """`low` to `high` of the candidates, in their given order."""

    candidates: tuple[Any, ...]
    low: int
    high: int


@dataclass(frozen=True)
class Repeat:
    """`times` layers of `item`, each deciding for itself unless parts are `tied`."""

    item: Any
    times: Any


@dataclass(frozen=True, eq=False)
class Tied:
    """One decision shared by every place that holds this very object (and by every layer of a repeat)."""

    item: Any


def choice(*candidates: Any) -> Choice:
    """One of `candidates`: numbers, None, text, or frozen dataclasses that may hold further choices.

    Raises ValueError when there is none or when two are equal.
    """
    if not candidates:
        raise ValueError("a choice needs at least one candidate: got none; write choice(64, 96)")
    for index, candidate in enumerate(candidates):
        for other in candidates[:index]:
            if other == candidate:
                raise ValueError(f"candidates of a choice must differ: {candidate!r} stands twice; remove one")
    return Choice(tuple(candidates))


def integer(low: int, high: int, step: int = 1) -> Integer:
    """A whole number from `low` to `high`, both included."""
    for name, value in (("low", low), ("high", high), ("step", step)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"integer({name}=) must be an int: got {value!r}")
    if low > high:
        raise ValueError(f"integer needs low <= high: got low={low} and high={high}; swap them")
    if step < 1:
        raise ValueError(f"integer needs a step of at least 1: got {step}")
    return Integer(low, high, step)


def real(low: float, high: float, step: float | None = None, log: bool = False) -> Real:
    """A real number from `low` to `high`, both included."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"real needs finite bounds: got {low} and {high}")
    if low > high:
        raise ValueError(f"real needs low <= high: got low={low} and high={high}; swap them")
    if step is not None and step <= 0:
        raise ValueError(f"real needs a positive step: got {step}")
    if log and low <= 0:
        raise ValueError(f"real(log=True) needs low > 0: got {low}")
    return Real(float(low), float(high), step, log)


def subset(*candidates: Any, size: int | tuple[int, int]) -> Subset:
    """Some of `candidates`: `size` of them, or between `size[0]` and `size[1]`."""
    low, high = (size, size) if isinstance(size, int) else size
    if not 0 <= low <= high <= len(candidates):
        raise ValueError(f"subset needs 0 <= size <= {len(candidates)} candidates: got size={size}")
    choice(*candidates)
    return Subset(tuple(candidates), low, high)


def repeat(item: Any, times: Any) -> Repeat:
    """`times` layers of `item`; `times` is a number, an `integer` or a `choice` of numbers."""
    counts = _counts(times)
    if not counts:
        raise TypeError(f"repeat(times=) must be an int, integer(low, high) or a choice of ints: got {times!r}")
    if min(counts) < 0:
        raise ValueError(f"repeat needs times >= 0: got {min(counts)}")
    return Repeat(item, times)


def _counts(times: Any) -> list[int]:
    if isinstance(times, Tied):
        return _counts(times.item)
    if isinstance(times, Integer):
        return list(times.values)
    values = times.candidates if isinstance(times, Choice) else (times,)
    return list(values) if all(isinstance(v, int) and not isinstance(v, bool) for v in values) else []


def tied(item: Any) -> Tied:
    """Make `item` one decision wherever the returned object is used, all layers of a repeat included."""
    return Tied(item)
