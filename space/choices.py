"""The vocabulary of a space: `choice`, `integer`, `real`, `subset`, `permutation`, `optional`, `repeat`, `tied`.

Candidates of a choice may hold choices of their own: conditionality is nesting. Any frozen dataclass may hold choices, a
user's own too. `rule`, for grammars, is in `grammar`. Nothing here knows of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Absent", "Choice", "Integer", "Real", "Repeat", "Subset", "Tied", "choice", "integer", "optional",
           "permutation", "real", "repeat", "subset", "tied"]

MAX_ORDERS = 40_320          # options of one gene: all orders of eight items
MAX_KEPT = 4096              # sets of layers a repeat with keep="any" decides between


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
    """`low` to `high` of the candidates: in their given order, or in any order when `ordered`."""

    candidates: tuple[Any, ...]
    low: int
    high: int
    ordered: bool = False


@dataclass(frozen=True)
class Absent:
    """Nothing, as a candidate beside something. What that is depends on the place: see `optional`."""


@dataclass(frozen=True)
class Repeat:
    """`times` layers of `item`, each deciding for itself unless parts are `tied`.

    keep: which of the layers there could be are there: the "first", or "any" of them.
    """

    item: Any
    times: Any
    keep: str = "first"

    def counts(self) -> list[int]:
        """The numbers of layers that may be decided, in the order they stand."""
        return _counts(self.times)


@dataclass(frozen=True, eq=False)
class Tied:
    """One decision shared by every place that holds this very object (and by every layer of a repeat)."""

    item: Any


def choice(*candidates: Any) -> Choice:
    """One of `candidates`: numbers, None, text, or frozen dataclasses that may hold further choices.

    Raises ValueError when there is none or when two are equal, TypeError for one list in place of its elements.

    Example:
        >>> choice(64, 96).candidates
        (64, 96)
    """
    if not candidates:
        raise ValueError("a choice needs at least one candidate: got none; write choice(64, 96)")
    if len(candidates) == 1 and isinstance(candidates[0], (list, set, dict, range)):
        raise TypeError(f"a choice takes its candidates one by one: got {candidates[0]!r}; write choice(*candidates)")
    _check_different("a choice", candidates)
    return Choice(tuple(candidates))


def _check_different(word: str, candidates: tuple[Any, ...]) -> None:
    for index, candidate in enumerate(candidates):
        for other in candidates[:index]:
            if other == candidate:
                raise ValueError(f"candidates of {word} must differ: {candidate!r} stands twice; remove one")


def integer(low: int, high: int, step: int = 1) -> Integer:
    """A whole number from `low` to `high`, both included.

    Raises TypeError for what is no int, ValueError when `high` is not `low` plus whole steps.

    Example:
        >>> list(integer(2, 8, step=2).values)
        [2, 4, 6, 8]
    """
    for name, value in (("low", low), ("high", high), ("step", step)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"integer({name}=) must be an int: got {value!r}")
    if low > high:
        raise ValueError(f"integer needs low <= high: got low={low} and high={high}; swap them")
    if step < 1:
        raise ValueError(f"integer needs a step of at least 1: got {step}")
    if (high - low) % step:
        last = high - (high - low) % step
        raise ValueError(f"integer needs high to be low plus whole steps: got low={low}, high={high} and step={step}; "
                         f"use high={last} or high={last + step}")
    return Integer(low, high, step)


def real(low: float, high: float, step: float | None = None, log: bool = False) -> Real:
    """A real number from `low` to `high`, both included; with a `step` it can be counted and enumerated.

    Raises TypeError for what is no number, ValueError when `high` is not `low` plus whole steps.

    Example:
        >>> real(1.0, 2.0, step=0.5).grid()
        [1.0, 1.5, 2.0]
    """
    for name, value in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"real({name}=) must be a number: got {value!r}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"real needs finite bounds: got {low} and {high}")
    if low > high:
        raise ValueError(f"real needs low <= high: got low={low} and high={high}; swap them")
    if log and low <= 0:
        raise ValueError(f"real(log=True) needs low > 0: got {low}")
    if step is not None:
        _check_step(low, high, step, log)
    return Real(float(low), float(high), step, log)


def _check_step(low: float, high: float, step: float, log: bool) -> None:
    if not step > 0 or not math.isfinite(step):
        raise ValueError(f"real needs a positive step: got {step}")
    if log:
        raise ValueError(f"real takes a step or log=True, not both: got step={step}; list the values in a choice")
    steps = (high - low) / step
    if abs(steps - round(steps)) > 1e-6 * max(1.0, steps):
        raise ValueError(f"real needs high to be low plus whole steps: got low={low}, high={high} and step={step}; "
                         f"use high={low + math.floor(steps) * step:g} or high={low + math.ceil(steps) * step:g}")


def subset(*candidates: Any, size: int | tuple[int, int], ordered: bool = False) -> Subset:
    """Some of `candidates`: `size` of them, or between `size[0]` and `size[1]`; in every order when `ordered`.

    In a body, in branches and in tuples the chosen ones are spliced in. A candidate keeps its weights whatever is chosen
    beside it. Raises ValueError for equal candidates, an impossible size, and more than 40,320 options.

    Example:
        >>> subset("a", "b", "c", size=(1, 2))
        Subset(candidates=('a', 'b', 'c'), low=1, high=2, ordered=False)
    """
    low, high = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    if not all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (low, high)):
        raise TypeError(f"subset(size=) must be an int or two of them: got {size!r}; write size=2 or size=(1, 2)")
    if not 0 <= low <= high <= len(candidates):                                      # type: ignore[operator]
        raise ValueError(f"subset needs 0 <= size <= {len(candidates)} candidates: got size={size}")
    _check_different("a subset", candidates)
    made = Subset(tuple(candidates), low, high, bool(ordered))                       # type: ignore[arg-type]
    ways = num_subsets(made)
    if ways > MAX_ORDERS:
        raise ValueError(f"a subset has at most {MAX_ORDERS} options: got {ways} with size={size} of {len(candidates)}; "
                         "use fewer candidates, a smaller size, or optional(...) around each of them")
    return made


def num_subsets(item: Subset) -> int:
    """How many options a subset has."""
    ways = math.perm if item.ordered else math.comb
    return sum(ways(len(item.candidates), k) for k in range(item.low, item.high + 1))


def permutation(*items: Any) -> Subset:
    """All of `items`, in every order. Raises ValueError above 8 of them, which have 40,320 orders.

    Example:
        >>> permutation("a", "b", "c").ordered
        True
    """
    if len(items) > 8:
        raise ValueError(f"a permutation holds at most 8 items, which have 40320 orders: got {len(items)}; "
                         "permute groups of them, or use a repeat of a choice")
    if not items:
        raise ValueError("a permutation needs at least one item: got none; write permutation(first, second)")
    _check_different("a permutation", items)
    return Subset(tuple(items), len(items), len(items), ordered=True)


def optional(item: Any) -> Choice:
    """`item` or nothing: a choice between the two.

    Nothing is: no layer in a body, no branch among branches, no element in a tuple; `Identity()` in a field that is
    `Identity()` by default, such as a block's mixer and channel; None in any other field.

    Example:
        >>> optional(4)
        Choice(candidates=(Absent(), 4))
    """
    if item is None or isinstance(item, Absent):
        raise ValueError(f"optional takes what may be absent: got {item!r}; write optional(item)")
    if isinstance(item, Choice) and Absent() in item.candidates:
        raise ValueError("optional of an optional decides twice for one nothing: write optional(item) once")
    return Choice((Absent(), item))


def repeat(item: Any, times: Any, keep: str = "first") -> Repeat:
    """`times` layers of `item`; `times` is a number, an `integer` or a `choice` of numbers.

    keep: with "first", fewer layers are the first of them. With "any", any `times` of the largest number of layers are
    kept (any-k depth): the layer at a position has that position's weights, whichever others are there, and one decision
    says which are. Raises ValueError when there are more than 4,096 such sets.

    Example:
        >>> repeat("layer", times=integer(1, 3)).counts()
        [1, 2, 3]
    """
    counts = _counts(times)
    if not counts:
        raise TypeError(f"repeat(times=) must be an int, integer(low, high) or a choice of ints: got {times!r}")
    if min(counts) < 0:
        raise ValueError(f"repeat needs times >= 0: got {min(counts)}")
    if keep not in ("first", "any"):
        raise ValueError(f"repeat(keep=) is 'first' or 'any': got {keep!r}")
    if keep == "any":
        _check_any(times, counts)
    return Repeat(item, times, keep)


def _check_any(times: Any, counts: list[int]) -> None:
    if isinstance(times, Tied):
        raise ValueError("repeat(keep='any') decides how many layers and which of them at once, so its times cannot be "
                         "tied: got tied(...); use keep='first', or tie the whole repeat")
    sets = sum(math.comb(max(counts), count) for count in set(counts))
    if sets > MAX_KEPT:
        raise ValueError(f"repeat(keep='any') decides between at most {MAX_KEPT} sets of layers: got {sets} for up to "
                         f"{max(counts)} layers; allow fewer numbers of layers, or split it into repeats run in a row")


def _counts(times: Any) -> list[int]:
    if isinstance(times, Tied):
        return _counts(times.item)
    if isinstance(times, Integer):
        return list(times.values)
    values = times.candidates if isinstance(times, Choice) else (times,)
    return list(values) if all(isinstance(v, int) and not isinstance(v, bool) for v in values) else []


def tied(item: Any) -> Tied:
    """Make `item` one decision wherever the returned object is used, all layers of a repeat included.

    Example:
        >>> heads = tied(choice(2, 4))          # use `heads` in several places
    """
    return Tied(item)
