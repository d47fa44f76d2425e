"""What a walk through the space does for the constraints: sums up, remembers, compares.

An action reads and writes numbered slots of the walk's state. Two actions that are equal do the same, wherever they stand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..counting.places import ABSENT, Slots
from .expressions import Absent, Constant, Expression, leaves

__all__ = ["Add", "Check", "CheckPart", "CheckPending", "Follow", "Formula", "Saturation", "key_of", "number_of"]

MAX_REMEMBERED = 50_000


def key_of(leaf: Expression) -> str:
    """What is equal for leaves that read the same."""
    return json.dumps(leaf._json(), sort_keys=True, default=repr)


class Formula:
    """An expression as a function of the values of its leaves, which are given in the order of `keys`."""

    def __init__(self, expression: Expression, text: str):
        self.expression, self.text = expression, text
        self.leaves = {key_of(leaf): leaf for leaf in leaves(expression)}
        self.keys = list(self.leaves)
        self.is_leaf = not isinstance(expression, Constant) and not expression._children()
        self._known: dict[tuple[Any, ...], Any] = {}

    def of(self, state: Slots, slots: Sequence[int]) -> Any:
        """The value by the slots that hold what is read."""
        return state[slots[0]] if self.is_leaf else self(tuple([state[slot] for slot in slots]))

    def __call__(self, values: tuple[Any, ...]) -> Any:
        """The value, ABSENT when one that is read is. Raises ValueError where it cannot be computed."""
        try:
            return self._known[values]
        except KeyError:
            pass
        except TypeError:                                  # an unhashable value of a user's own
            return self._compute(values)
        if len(self._known) > MAX_REMEMBERED:
            self._known.clear()
        found = self._known[values] = self._compute(values)
        return found

    def _compute(self, values: tuple[Any, ...]) -> Any:
        if ABSENT in values:
            return ABSENT
        table = dict(zip(self.keys, values, strict=True))
        try:
            return self.expression._value(lambda leaf: table[key_of(leaf)])
        except Absent:
            return ABSENT
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            read = ", ".join(f"{self.leaves[key]._text()} = {value!r}" for key, value in table.items())
            raise ValueError(f"a constraint can be computed for every architecture: `{self.text}` cannot with {read} "
                             f"({error}); leave those values out, or compare them with == alone") from error


@dataclass(frozen=True)
class Check:
    """Compare once all that is read is known. `sums` are the slots that stand at 0 where nothing was added."""

    number: int
    formula: Formula
    slots: tuple[int, ...]
    sums: frozenset[int] = frozenset()

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        return _settle(self, broken, self.formula(_read(state, self.slots, self.sums)))


@dataclass(frozen=True)
class CheckPart:
    """Compare within a part; what is known only later (`is_late`: sums) makes it wait, with its own values, in `pending`."""

    number: int
    formula: Formula
    slots: tuple[int, ...]
    outer: frozenset[int]
    pending: int | None
    is_late: bool

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        values = tuple([state[slot] for slot in self.slots])
        own = tuple([ABSENT if slot in self.outer else state[slot] for slot in self.slots])
        if any(value is ABSENT and slot not in self.outer for value, slot in zip(own, self.slots, strict=True)):
            return True
        if self.pending is not None and (self.is_late or ABSENT in values):
            waiting = state[self.pending]
            state[self.pending] = (frozenset() if waiting is ABSENT else waiting) | {own}
            return True
        return _settle(self, broken, self.formula(values))


@dataclass(frozen=True)
class CheckPending:
    """Compare the values that waited."""

    number: int
    formula: Formula
    slots: tuple[int, ...]
    outer: frozenset[int]
    pending: int
    sums: frozenset[int]

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        if state[self.pending] is ABSENT:
            return True
        known = _read(state, self.slots, self.sums)
        held = all(self.formula(tuple([k if slot in self.outer else o for slot, k, o in
                                       zip(self.slots, known, own, strict=True)])) is not False
                   for own in state[self.pending])
        return _settle(self, broken, held)


@dataclass(frozen=True)
class Saturation:
    """From where on a sum that only grows decides its rule: `op` and `limit` of `sum op limit`."""

    number: int
    op: str
    limit: float

    def settle(self, total: float, broken: set[int] | None) -> float | None:
        """The sum, infinity where any larger one is judged alike, None where it breaks the rule for good."""
        if total < self.limit or total == self.limit and self.op != ">=":
            return total
        if self.op in ("<=", "==", "<"):
            if broken is None:
                return None
            broken.add(self.number)
        return math.inf


@dataclass(frozen=True)
class Add:
    """Add `amount` of a part to a sum, where the part satisfies `where`."""

    total: int
    where: Formula | None
    where_slots: tuple[int, ...]
    amount: Formula | None
    amount_slots: tuple[int, ...]
    saturation: Saturation | None

    @property
    def slots(self) -> tuple[int, ...]:
        return (self.total, *self.where_slots, *self.amount_slots)

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        if self.where is not None and self.where.of(state, self.where_slots) is not True:
            return True
        amount = 1 if self.amount is None else self.amount.of(state, self.amount_slots)
        if amount is ABSENT:
            return True
        before = state[self.total]
        total: float | None = (0 if before is ABSENT else before) + number_of(amount, self.amount)
        if self.saturation is not None:
            total = self.saturation.settle(total, broken)                             # type: ignore[arg-type]
        state[self.total] = total
        return total is not None


@dataclass(frozen=True)
class Follow:
    """Compare a part's value with the one before it."""

    number: int
    last: int
    amount: Formula
    amount_slots: tuple[int, ...]
    decreasing: bool
    strict: bool

    @property
    def slots(self) -> tuple[int, ...]:
        return (self.last, *self.amount_slots)

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        found = self.amount.of(state, self.amount_slots)
        if found is ABSENT:
            return True
        new, last = number_of(found, self.amount), state[self.last]
        state[self.last] = new
        held = last is ABSENT or (last > new if self.decreasing else last < new) or (last == new and not self.strict)
        return _settle(self, broken, held)


def _read(state: Slots, slots: Sequence[int], sums: frozenset[int]) -> tuple[Any, ...]:
    return tuple([0 if state[slot] is ABSENT and slot in sums else state[slot] for slot in slots])


def number_of(amount: Any, formula: Formula | None) -> float:
    """A number to add or compare; None is no limit. Raises ValueError for what is no number."""
    if amount is None:
        return math.inf
    if isinstance(amount, (int, float)):
        return amount
    raise ValueError(f"a constraint adds and compares numbers: got {amount!r} in `{formula.text if formula else ''}`; "
                     "count(...) counts parts by their text")


def _settle(action: Any, broken: set[int] | None, held: Any) -> bool:
    """Go on where the rule holds or says nothing; else stop, or note it."""
    if held is not False:
        return True
    if broken is None:
        return False
    broken.add(action.number)
    return True
