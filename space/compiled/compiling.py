"""From the user's dataclasses to the compiled tree: every possible decision gets its path here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from ..choices import Absent, Choice, Integer, Real, Repeat, Subset, Tied
from ..genome import Decision
from ..grammar import Rule, Symbol
from .spec import ChoiceNode, Fixed, Gene, Leaf, Node, RecordNode, RepeatNode, SequenceNode, SubsetNode

__all__ = ["DROPPED", "Compiler", "describe"]

DROPPED = Absent()      # what is absent from a sequence leaves no element


class Compiler:
    """Compiles the parts of one space; parts tied to each other must be compiled by one compiler."""

    def __init__(self) -> None:
        self.tied: dict[int, tuple[Tied, Node, Any]] = {}

    def compile(self, item: Any, path: str, absent: Any = None) -> Node:
        """The node of `item` at `path`. absent: what `Absent()` means here, DROPPED among the items of a sequence."""
        if isinstance(item, Tied):
            return self._tied(item, path, absent)
        if isinstance(item, Rule):
            return self.compile(item.unrolled, path, absent)
        if isinstance(item, Absent):
            return Fixed((), ()) if absent is DROPPED else self.compile(absent, path)
        if isinstance(item, Choice):
            return self._choice(item, path, absent)
        if isinstance(item, (Integer, Real)):
            return Leaf(_number(item, path))
        if isinstance(item, Subset):
            return self._subset(item, path)
        if isinstance(item, Repeat):
            return self._kept(item, path) if item.keep == "any" else self._repeat(item, path)
        if isinstance(item, (tuple, list)):
            return self._sequence(item, path)
        if isinstance(item, Symbol):
            raise ValueError(f"a rule's own symbol stands only inside the rule: got one at {path}; use it in the function "
                             "given to rule(...)")
        if is_dataclass(item) and not isinstance(item, type):
            return self._record(item, path)
        return Fixed(item)

    def _tied(self, item: Tied, path: str, absent: Any) -> Node:
        if id(item) not in self.tied:
            shared = re.sub(r"\[\d+\]", "[*]", path)
            taken = {node.genes[0].path for _, node, _ in self.tied.values() if node.genes}
            while shared in taken:
                shared += "'"
            self.tied[id(item)] = (item, self.compile(item.item, shared, absent), absent)
        _, node, first = self.tied[id(item)]
        if first is not absent and first != absent and _may_be_absent(item):
            raise ValueError(f"what is tied and optional stands in places of one kind: got {describe(item)} at {path}, where "
                             "nothing means something else; tie what is inside the optional")
        return node

    def _choice(self, item: Choice, path: str, absent: Any) -> Node:
        candidates = tuple(self.compile(c, f"{path}.{i}", absent) for i, c in enumerate(item.candidates))
        labels = _distinct([describe(c) for c in item.candidates])
        numbers = tuple(c.value for c in candidates if isinstance(c, Fixed) and _is_number(c.value))
        numbers = numbers if len(numbers) == len(candidates) else ()
        options = tuple(range(len(candidates)))
        return ChoiceNode(Gene(path, "choice", options, labels=labels, numbers=numbers), candidates)

    def _subset(self, item: Subset, path: str) -> Node:
        slots = tuple(f"{path}.{i}" for i in range(len(item.candidates)))
        candidates = tuple(self.compile(c, slot, DROPPED) for c, slot in zip(item.candidates, slots, strict=True))
        ways = itertools.permutations if item.ordered else itertools.combinations
        options: tuple[Decision, ...] = tuple(itertools.chain.from_iterable(
            ways(range(len(candidates)), k) for k in range(item.low, item.high + 1)))
        names = _distinct([describe(c) for c in item.candidates])
        mark = ">" if item.ordered else "+"
        labels = tuple(mark.join(names[i] for i in option) or "none" for option in options)  # type: ignore[union-attr]
        gene = Gene(path, "subset", options, labels=labels, items=len(candidates), ordered=item.ordered)
        return SubsetNode(gene, candidates, slots, path)

    def _repeat(self, item: Repeat, path: str) -> Node:
        times = self.compile(item.times, f"{path}.times")
        items = tuple(self.compile(item.item, f"{path}[{i}]", DROPPED) for i in range(max(item.counts())))
        return RepeatNode(times, items, path)

    def _kept(self, item: Repeat, path: str) -> Node:
        """A repeat of which any layers are kept: a subset of them."""
        slots = tuple(f"{path}[{i}]" for i in range(max(item.counts())))
        items = tuple(self.compile(item.item, slot, DROPPED) for slot in slots)
        options: tuple[Decision, ...] = tuple(itertools.chain.from_iterable(
            itertools.combinations(range(len(items)), k) for k in sorted(set(item.counts()))))
        labels = tuple("layers " + "+".join(map(str, option)) if option else "none" for option in options)  # type: ignore[arg-type]
        gene = Gene(f"{path}.kept", "subset", options, labels=labels, items=len(items))
        return SubsetNode(gene, items, slots, path, is_repeat=True)

    def _sequence(self, item: tuple[Any, ...] | list[Any], path: str) -> Node:
        parts = tuple(self.compile(part, f"{path}.{i}", DROPPED) for i, part in enumerate(item))
        if item and all(isinstance(p, Fixed) and p.address is None for p in parts):
            return Fixed(tuple(p.value for p in parts if isinstance(p, Fixed)))
        return SequenceNode(parts, path)

    def _record(self, item: Any, path: str) -> Node:
        held = [f for f in fields(item) if f.init]
        parts = tuple(self.compile(getattr(item, f.name), f"{path}.{f.name}", _nothing_in(f, getattr(item, f.name)))
                      for f in held)
        node = RecordNode(type(item), tuple(f.name for f in held), parts, path)
        return Fixed(*node.resolve(_no_decision)) if not node.genes else node


def _number(item: Integer | Real, path: str) -> Gene:
    if isinstance(item, Integer):
        return Gene(path, "integer", tuple(item.values), item.low, item.high, numbers=tuple(item.values))
    grid = tuple(item.grid() or ())
    return Gene(path, "real", grid or None, item.low, item.high, item.log, numbers=grid)


def _nothing_in(place: Field[Any], item: Any) -> Any:
    """What an absent value of a field is: `Identity()` where that is the default, else None."""
    if not _may_be_absent(item):
        return None
    default = place.default if place.default_factory is MISSING else place.default_factory()
    return default if getattr(default, "kind", "") == "identity" else None


def _may_be_absent(item: Any) -> bool:
    if isinstance(item, Tied):
        return _may_be_absent(item.item)
    if isinstance(item, Rule):
        return _may_be_absent(item.unrolled)
    if isinstance(item, Choice):
        return any(_may_be_absent(candidate) for candidate in item.candidates)
    return isinstance(item, Absent)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _no_decision(gene: Gene) -> Decision:
    raise AssertionError(f"a fixed part of the space asked for a decision at {gene.path}")


def _distinct(labels: list[str]) -> tuple[str, ...]:
    return tuple(f"{text}#{i}" if labels.count(text) > 1 else text for i, text in enumerate(labels))


def describe(item: Any) -> str:
    """A short name of a candidate: a class without its fields, or the plain value."""
    if isinstance(item, Tied):
        return describe(item.item)
    if isinstance(item, Rule):
        return describe(item.unrolled)
    if isinstance(item, Absent):
        return "absent"
    if isinstance(item, (tuple, list)):
        return f"({', '.join(describe(part) for part in item)})"
    if isinstance(item, (Choice, Subset, Repeat)):
        return type(item).__name__.lower()
    if is_dataclass(item) and not isinstance(item, type):
        given = list(_told(item))
        return f"{type(item).__name__}({', '.join(given)})" if given else type(item).__name__
    return str(item)


def _told(item: Any) -> Iterator[str]:
    for f in fields(item):
        value = getattr(item, f.name)
        if isinstance(value, (int, float, str)) and value != f.default:
            yield f"{f.name}={value}"
