"""The compiled form of a space: a tree in which every possible decision has one fixed path.

`Compiler` turns the user's dataclasses into these nodes once. Afterwards sampling, validating, mutating and
resolving are the same walk with another answer to the question "what is decided here?".
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from .choices import Choice, Integer, Real, Repeat, Subset, Tied
from .genome import Decision

__all__ = ["Compiler", "Decide", "Fixed", "Gene", "Node", "describe", "variants"]

MAX_MEMORY = 4096
Decide = Callable[["Gene"], Decision]
Resolved = tuple[Any, Any]   # the value, and the weight addresses of the dataclasses inside it


@dataclass(frozen=True, eq=False)
class Gene:
    """One possible decision. Discrete genes list their `options`; continuous ones have `low` and `high`."""

    path: str
    kind: str
    options: tuple[Decision, ...] | None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    labels: tuple[str, ...] = ()

    def sample(self, rng: random.Random) -> Decision:
        if self.options is not None:
            return self.options[int(rng.random() * len(self.options))]
        return _draw_real(self, rng)

    def contains(self, decision: Decision) -> bool:
        if self.options is not None:
            return any(type(o) is type(decision) and o == decision for o in self.options)
        return isinstance(decision, (int, float)) and self.low <= decision <= self.high

    def label(self, decision: Decision) -> str:
        """The decision in words: a candidate's class, a number."""
        if self.labels and self.options is not None:
            return self.labels[self.options.index(decision)]
        return f"{decision:g}" if isinstance(decision, float) else str(decision)


def _draw_real(gene: Gene, rng: random.Random) -> float:
    if gene.log:
        return min(max(math.exp(rng.uniform(math.log(gene.low), math.log(gene.high))), gene.low), gene.high)
    return rng.uniform(gene.low, gene.high)


class Node:
    """A place in the space. `resolve` asks `decide` for each gene met and returns (value, addresses)."""

    genes: tuple[Gene, ...] = ()          # every gene at or below, in walk order, without repeats

    def resolve(self, decide: Decide) -> Resolved:
        raise AssertionError("nodes resolve themselves")


@dataclass(eq=False)
class Fixed(Node):
    value: Any
    address: Any = None

    def resolve(self, decide: Decide) -> Resolved:
        return self.value, self.address


@dataclass(eq=False)
class Leaf(Node):
    """An integer or a real: the decision is the value."""

    gene: Gene

    def __post_init__(self) -> None:
        self.genes = (self.gene,)

    def resolve(self, decide: Decide) -> Resolved:
        return decide(self.gene), None


@dataclass(eq=False)
class ChoiceNode(Node):
    gene: Gene
    candidates: tuple[Node, ...]

    def __post_init__(self) -> None:
        self.genes = _unique(((self.gene,), *(c.genes for c in self.candidates)))

    def resolve(self, decide: Decide) -> Resolved:
        return self.candidates[decide(self.gene)].resolve(decide)   # type: ignore[index]


@dataclass(eq=False)
class SubsetNode(Node):
    gene: Gene
    candidates: tuple[Node, ...]

    def __post_init__(self) -> None:
        self.genes = _unique(((self.gene,), *(c.genes for c in self.candidates)))

    def resolve(self, decide: Decide) -> Resolved:
        chosen = [self.candidates[i].resolve(decide) for i in decide(self.gene)]   # type: ignore[union-attr]
        return tuple(v for v, _ in chosen), tuple(a for _, a in chosen)


@dataclass(eq=False)
class RecordNode(Node):
    """A frozen dataclass with choices in its fields. Resolved instances are remembered by their decisions."""

    cls: type
    names: tuple[str, ...]
    parts: tuple[Node, ...]
    path: str
    memory: dict[tuple[Any, ...], Resolved] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.genes = _unique(tuple(p.genes for p in self.parts))

    def resolve(self, decide: Decide) -> Resolved:
        pairs = [part.resolve(decide) for part in self.parts]
        key = tuple([id(value) if is_dataclass(value) else value for value, _ in pairs])
        try:
            return self.memory[key]
        except KeyError:
            pass
        except TypeError:                      # an unhashable value, such as a user's list
            return self._make(pairs)
        if len(self.memory) > MAX_MEMORY:
            self.memory.clear()
        made = self.memory[key] = self._make(pairs)
        return made

    def _make(self, pairs: list[Resolved]) -> Resolved:
        value = self.cls(**dict(zip(self.names, (v for v, _ in pairs), strict=True)))
        address = {name: where for name, (_, where) in zip(self.names, pairs, strict=True) if where is not None}
        # The parts stay referenced by `value`, so the ids in the memory's keys stay theirs.
        return value, {"": self.path, **address}


@dataclass(eq=False)
class SequenceNode(Node):
    """A tuple; repeats inside it are spliced in."""

    parts: tuple[Node, ...]
    path: str

    def __post_init__(self) -> None:
        self.genes = _unique(tuple(p.genes for p in self.parts))

    def resolve(self, decide: Decide) -> Resolved:
        values: list[Any] = []
        addresses: list[Any] = []
        for index, part in enumerate(self.parts):
            value, address = part.resolve(decide)
            if isinstance(part, (RepeatNode, SequenceNode)):
                values += value
                addresses += address
            else:
                values.append(value)
                addresses.append(_slotted(address, f"{self.path}.{index}"))
        return tuple(values), tuple(addresses)


@dataclass(eq=False)
class RepeatNode(Node):
    times: Node
    items: tuple[Node, ...]               # one per possible layer
    path: str

    def __post_init__(self) -> None:
        self.genes = _unique((self.times.genes, *(i.genes for i in self.items)))

    def counts(self) -> list[int]:
        """The numbers of layers that may be decided."""
        if isinstance(self.times, Fixed):
            return [self.times.value]
        if isinstance(self.times, Leaf):
            return list(self.times.gene.options or ())         # type: ignore[arg-type]
        assert isinstance(self.times, ChoiceNode)
        return [c.value for c in self.times.candidates if isinstance(c, Fixed)]

    def resolve(self, decide: Decide) -> Resolved:
        count, _ = self.times.resolve(decide)
        made = [item.resolve(decide) for item in self.items[:count]]
        return tuple([v for v, _ in made]), tuple([_slotted(a, f"{self.path}[{i}]") for i, (_, a) in enumerate(made)])


def _slotted(address: Any, slot: str) -> Any:
    """Note the position in a body, since a tied item has the same path at every position."""
    return {"@": slot, **address} if isinstance(address, dict) and "@" not in address else address


def _unique(groups: tuple[tuple[Gene, ...], ...]) -> tuple[Gene, ...]:
    return tuple({gene.path: gene for group in groups for gene in group}.values())


class Compiler:
    def __init__(self) -> None:
        self.tied: dict[int, tuple[Tied, Node]] = {}

    def compile(self, item: Any, path: str) -> Node:
        if isinstance(item, Tied):
            return self._tied(item, path)
        if isinstance(item, Choice):
            return self._choice(item, path)
        if isinstance(item, Integer):
            return Leaf(Gene(path, "integer", tuple(item.values), item.low, item.high))
        if isinstance(item, Real):
            grid = item.grid()
            options = tuple(grid) if grid else None
            return Leaf(Gene(path, "real", options, item.low, item.high, item.log))
        if isinstance(item, Subset):
            return self._subset(item, path)
        if isinstance(item, Repeat):
            return self._repeat(item, path)
        if isinstance(item, (tuple, list)):
            return self._sequence(item, path)
        if is_dataclass(item) and not isinstance(item, type):
            return self._record(item, path)
        return Fixed(item)

    def _tied(self, item: Tied, path: str) -> Node:
        if id(item) not in self.tied:
            shared = re.sub(r"\[\d+\]", "[*]", path)
            taken = {node.genes[0].path for _, node in self.tied.values() if node.genes}
            while shared in taken:
                shared += "'"
            self.tied[id(item)] = (item, self.compile(item.item, shared))
        return self.tied[id(item)][1]

    def _choice(self, item: Choice, path: str) -> Node:
        candidates = tuple(self.compile(c, f"{path}.{i}") for i, c in enumerate(item.candidates))
        labels = tuple(describe(c) for c in item.candidates)
        labels = tuple(f"{text}#{i}" if labels.count(text) > 1 else text for i, text in enumerate(labels))
        return ChoiceNode(Gene(path, "choice", tuple(range(len(candidates))), labels=labels), candidates)

    def _subset(self, item: Subset, path: str) -> Node:
        candidates = tuple(self.compile(c, f"{path}.{i}") for i, c in enumerate(item.candidates))
        options = tuple(itertools.chain.from_iterable(
            itertools.combinations(range(len(candidates)), k) for k in range(item.low, item.high + 1)))
        names = [describe(c) for c in item.candidates]
        labels = tuple("+".join(names[i] for i in option) or "none" for option in options)
        return SubsetNode(Gene(path, "subset", options, labels=labels), candidates)

    def _repeat(self, item: Repeat, path: str) -> Node:
        times = self.compile(item.times, f"{path}.times")
        probe = RepeatNode(times, (), path)
        items = tuple(self.compile(item.item, f"{path}[{i}]") for i in range(max(probe.counts())))
        return RepeatNode(times, items, path)

    def _sequence(self, item: tuple[Any, ...] | list[Any], path: str) -> Node:
        parts = tuple(self.compile(part, f"{path}.{i}") for i, part in enumerate(item))
        if all(isinstance(p, Fixed) and p.address is None for p in parts):
            return Fixed(tuple(item))
        return SequenceNode(parts, path)

    def _record(self, item: Any, path: str) -> Node:
        names = tuple(f.name for f in fields(item) if f.init)
        parts = tuple(self.compile(getattr(item, name), f"{path}.{name}") for name in names)
        node = RecordNode(type(item), names, parts, path)
        return Fixed(*node.resolve(_no_decision)) if not node.genes else node


def _no_decision(gene: Gene) -> Decision:
    raise AssertionError(f"a fixed part of the space asked for a decision at {gene.path}")


def describe(item: Any) -> str:
    """A short name of a candidate: a class without its fields, or the plain value."""
    if isinstance(item, Tied):
        return describe(item.item)
    if is_dataclass(item) and not isinstance(item, type):
        simple = ((f.name, getattr(item, f.name)) for f in fields(item))
        given = [f"{n}={v}" for n, v in simple
                 if isinstance(v, (int, float, str)) and v != _default(type(item), n)]
        return f"{type(item).__name__}({', '.join(given)})" if given else type(item).__name__
    return str(item)


def _default(cls: type, name: str) -> Any:
    return next(f.default for f in fields(cls) if f.name == name)


def variants(node: Node, limit: int) -> Iterator[Any]:
    """Resolved values of `node` over all its decisions; over the ends of each range where there are more than `limit`."""
    total = 1
    for gene in node.genes:
        total *= len(gene.options or (0, 1))
    reduced = total > limit
    seen: set[int] = set()
    options = {gene.path: _ends(gene, reduced) for gene in node.genes}
    for decisions in itertools.islice(itertools.product(*options.values()), 64 * limit):
        table = dict(zip(options, decisions, strict=True))
        value, _ = node.resolve(lambda gene, table=table: table[gene.path])   # type: ignore[misc]
        if id(value) not in seen:
            seen.add(id(value))
            yield value


def _ends(gene: Gene, reduced: bool) -> tuple[Decision, ...]:
    if gene.options is None:
        return (gene.low, gene.high)
    if not reduced or gene.kind == "choice":
        return gene.options
    return tuple(dict.fromkeys((gene.options[0], gene.options[-1])))
