"""Recursion of a grammar rule: a part of a space that holds itself, down to a given depth.

A rule is unrolled once, when it is written: what is left is a finite tree of the ordinary words, so that everything else
(counting, sampling, weights) knows nothing of grammars. Context-free grammars as spaces of architectures: Construction of
Hierarchical Neural Architecture Search Spaces based on Context-free Grammars (Schrodi et al., 2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .choices import Absent, Choice, Repeat, Subset, Tied

__all__ = ["Rule", "Symbol", "held", "leaves", "rule"]

MAX_PLACES = 20_000


@dataclass(frozen=True, eq=False, repr=False)
class Symbol:
    """Stands for a rule inside its own definition."""

    def __repr__(self) -> str:
        return "self"


class _Nothing:
    """What no candidate can be built from: a rule below its deepest level."""


NOTHING = _Nothing()


@dataclass(frozen=True, eq=False)
class Rule:
    """`template` with `symbol` standing for the rule itself, at most `depth` of them inside each other."""

    template: Any
    symbol: Symbol
    depth: int

    @property
    def unrolled(self) -> Any:
        """The rule in ordinary words; the same object every time."""
        if "_unrolled" not in self.__dict__:
            object.__setattr__(self, "_unrolled", _unroll(self))
        return self.__dict__["_unrolled"]


def rule(make: Callable[[Any], Any], depth: int) -> Rule:
    """What `make(self)` returns, where `self` stands for the whole of it again, at most `depth` levels in each other.

    Candidates that would need a deeper level are left out: at the last level a choice offers only what ends there. A
    symbol of an outer rule may be used in an inner one, which is how rules call each other.

    Raises ValueError when nothing ends within `depth` levels, or when unrolling makes more than 20,000 places.

    Example:
        >>> from .choices import choice
        >>> rule(lambda self: choice("leaf", ("pair", self)), depth=2).unrolled
        Choice(candidates=('leaf', ('pair', Choice(candidates=('leaf',)))))
    """
    if not callable(make):
        raise TypeError(f"rule takes a function of the rule itself: got {make!r}; write "
                        "rule(lambda self: choice(block, Parallel(branches=(self, self))), depth=3)")
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ValueError(f"rule(depth=) is the number of levels, at least 1: got {depth!r}")
    symbol = Symbol()
    return checked(Rule(make(symbol), symbol, depth))


def checked(made: Rule) -> Rule:
    """The rule itself. Raises ValueError when it never ends or is too large."""
    if made.unrolled is NOTHING:
        raise ValueError(f"a rule must end: no candidate does within depth={made.depth}; add one without the rule itself, "
                         "such as choice(block, ...)")
    places = _num_places(made.unrolled, {})
    if places > MAX_PLACES:
        raise ValueError(f"a rule unrolls to at most {MAX_PLACES} places: got {places} with depth={made.depth}; use fewer "
                         "levels, or the rule fewer times in itself")
    return made


def _unroll(of: Rule) -> Any:
    below: Any = NOTHING
    for _ in range(of.depth):
        below = _Level(of.symbol, below).replaced(of.template)
    return below


class _Level:
    """One level of a rule: the template with what lies below in the place of the symbol.

    What holds no symbol stays the same object, so that what is tied stays tied across levels.
    """

    def __init__(self, symbol: Symbol, below: Any):
        self.symbol, self.below = symbol, below
        self.ties: dict[int, Any] = {}

    def replaced(self, item: Any) -> Any:
        if item is self.symbol:
            return self.below
        if isinstance(item, Rule):
            return self.replaced(item.unrolled)
        if isinstance(item, Tied):
            return self._tied(item)
        if isinstance(item, Choice):
            left = self._left(item.candidates)
            return item if _same(left, item.candidates) else Choice(left) if left else NOTHING
        if isinstance(item, Subset):
            return self._subset(item)
        if isinstance(item, Repeat):
            return self._repeat(item)
        if isinstance(item, (tuple, list)):
            parts = tuple(self.replaced(part) for part in item)
            return NOTHING if NOTHING in parts else item if _same(parts, item) else parts
        return self._record(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item

    def _left(self, candidates: tuple[Any, ...]) -> tuple[Any, ...]:
        made = (self.replaced(candidate) for candidate in candidates)
        return tuple(candidate for candidate in made if candidate is not NOTHING)

    def _tied(self, item: Tied) -> Any:
        if id(item) not in self.ties:
            inner = self.replaced(item.item)
            self.ties[id(item)] = item if inner is item.item else NOTHING if inner is NOTHING else Tied(inner)
        return self.ties[id(item)]

    def _subset(self, item: Subset) -> Any:
        left = self._left(item.candidates)
        if _same(left, item.candidates):
            return item
        return NOTHING if len(left) < item.low else Subset(left, item.low, min(item.high, len(left)), item.ordered)

    def _repeat(self, item: Repeat) -> Any:
        inner = self.replaced(item.item)
        if inner is NOTHING:
            return () if 0 in item.counts() else NOTHING
        return item if inner is item.item else Repeat(inner, item.times, item.keep)

    def _record(self, item: Any) -> Any:
        held = {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if f.init}
        made = {name: self.replaced(value) for name, value in held.items()}
        if any(value is NOTHING for value in made.values()):
            return NOTHING
        changed = {name: value for name, value in made.items() if value is not held[name]}
        return dataclasses.replace(item, **changed) if changed else item


def held(item: Any) -> tuple[tuple[str, Any], ...] | None:
    """What a word of the vocabulary offers, as (end of its path, part); None for what is no such word."""
    if isinstance(item, (Choice, Subset)):
        return tuple((f".{i}", candidate) for i, candidate in enumerate(item.candidates))
    if isinstance(item, Repeat):
        return (("[0]", item.item),)
    if isinstance(item, Tied):
        return (("", item.item),)
    if isinstance(item, Rule):
        return (("", item.unrolled),)
    return () if isinstance(item, Absent) else None


def leaves(item: Any) -> Iterator[Any]:
    """All that may stand in the place of `item`: candidates of choices, items of sequences, at any depth; what is inside of
    those is left alone."""
    inside = held(item)
    parts = item if inside is None and isinstance(item, (tuple, list)) else [part for _, part in inside or ()]
    if inside is None and not isinstance(item, (tuple, list)):
        yield item
    for part in parts:
        yield from leaves(part)


def _same(made: tuple[Any, ...], given: Any) -> bool:
    return len(made) == len(given) and all(a is b for a, b in zip(made, given, strict=True))


def _num_places(item: Any, known: dict[int, int]) -> int:
    """How many places an item has when every use of a shared part is a part of its own."""
    if id(item) not in known:
        known[id(item)] = 1 + sum(_num_places(part, known) for part in _parts(item))
    return known[id(item)]


def _parts(item: Any) -> tuple[Any, ...]:
    if isinstance(item, Rule):
        return (item.unrolled,)
    if isinstance(item, Repeat):
        return (item.item,) * max(item.counts())
    if isinstance(item, (tuple, list)):
        return tuple(item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return tuple(getattr(item, f.name) for f in dataclasses.fields(item) if f.init)
    return ()
