"""The compiled form of a space: a tree in which every possible decision has one fixed path.

`Compiler` (in `compiling`) turns the user's dataclasses into these nodes once. Afterwards sampling, validating, mutating
and resolving are the same walk with another answer to the question "what is decided here?".
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ..genome import Decision

__all__ = ["ChoiceNode", "Decide", "Fixed", "Gene", "Leaf", "Node", "RecordNode", "RepeatNode", "SequenceNode",
           "SubsetNode", "join", "variants", "walks"]

MAX_MEMORY = 4096
Decide = Callable[["Gene"], Decision]
Resolved = tuple[Any, Any]   # the value, and the weight addresses of the dataclasses inside it


@dataclass(frozen=True, eq=False)
class Gene:
    """One possible decision. Discrete genes list their `options`; continuous ones have `low` and `high`.

    kind: choice | integer | real | subset. numbers: what the options stand for, where each is a number. items, ordered: how
    many candidates a subset is taken from, and whether their order counts.
    """

    path: str
    kind: str
    options: tuple[Decision, ...] | None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    labels: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    items: int = 0
    ordered: bool = False

    def sample(self, rng: random.Random) -> Decision:
        if self.options is not None:
            return self.options[int(rng.random() * len(self.options))]
        return _draw_real(self, rng)

    @cached_property
    def index(self) -> dict[Decision, int]:
        """The place of every option."""
        return {option: i for i, option in enumerate(self.options or ())}

    @cached_property
    def digits(self) -> int:
        """Decimals a continuous decision is rounded to: twelve significant ones of the range."""
        return 12 - math.floor(math.log10(self.high - self.low)) if self.high > self.low else 15

    def rounded(self, number: float) -> float:
        """The continuous decision nearest to `number`: inside the range, at its ends or a round decimal."""
        return min(max(round(number, self.digits), self.low), self.high)

    def contains(self, decision: Decision) -> bool:
        if self.options is None:
            return isinstance(decision, (int, float)) and self.low <= decision <= self.high
        try:
            return type(self.options[self.index[decision]]) is type(decision)
        except (KeyError, TypeError):
            return False

    @property
    def is_open(self) -> bool:
        """Whether there is anything to decide."""
        return self.high > self.low if self.options is None else len(self.options) > 1

    def label(self, decision: Decision) -> str:
        """The decision in words: a candidate's class, a number."""
        if self.labels and self.options is not None:
            return self.labels[self.index[decision]]
        return f"{decision:g}" if isinstance(decision, float) else str(decision)


def _draw_real(gene: Gene, rng: random.Random) -> float:
    if gene.log:
        return gene.rounded(math.exp(rng.uniform(math.log(gene.low), math.log(gene.high))))
    return gene.rounded(rng.uniform(gene.low, gene.high))


class Node:
    """A place in the space. `resolve` asks `decide` for each gene met and returns (value, addresses)."""

    genes: tuple[Gene, ...] = ()          # every gene at or below, in walk order, without repeats
    children: tuple[Node, ...] = ()       # the nodes directly below

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
        self.children = self.candidates
        self.genes = _unique(((self.gene,), *(c.genes for c in self.candidates)))

    def resolve(self, decide: Decide) -> Resolved:
        return self.candidates[decide(self.gene)].resolve(decide)   # type: ignore[index]


@dataclass(eq=False)
class SubsetNode(Node):
    """Some of the candidates, as the gene says. Slots go with the candidates, so weights do not depend on the others.

    A repeat with keep="any" is one too: its candidates are the layers, its slots theirs, and `is_repeat` is set.
    """

    gene: Gene
    candidates: tuple[Node, ...]
    slots: tuple[str, ...]
    path: str
    is_repeat: bool = False

    def __post_init__(self) -> None:
        self.children = self.candidates
        self.genes = _unique(((self.gene,), *(c.genes for c in self.candidates)))

    def resolve(self, decide: Decide) -> Resolved:
        chosen: tuple[int, ...] = decide(self.gene)                 # type: ignore[assignment]
        return _spliced([self.slots[i] for i in chosen], [self.candidates[i].resolve(decide) for i in chosen])


@dataclass(eq=False)
class RecordNode(Node):
    """A frozen dataclass with choices in its fields. Resolved instances are remembered by their decisions."""

    cls: type
    names: tuple[str, ...]
    parts: tuple[Node, ...]
    path: str
    memory: dict[tuple[Any, ...], Resolved] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.children = self.parts
        self.genes = _unique(tuple(p.genes for p in self.parts))

    def resolve(self, decide: Decide) -> Resolved:
        pairs = [part.resolve(decide) for part in self.parts]
        # Dataclasses, which have addresses, are remembered by identity; so they are in tuples, each with its slot.
        key = tuple([value if where is None else id(value) if type(where) is dict else
                     tuple([v if w is None else (id(v), w["@"]) for v, w in zip(value, where, strict=True)])
                     for value, where in pairs])
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
    """A tuple; what stands for several items (repeats, subsets, tuples, nothing) is spliced in."""

    parts: tuple[Node, ...]
    path: str

    def __post_init__(self) -> None:
        self.children = self.parts
        self.slots = [f"{self.path}.{index}" for index in range(len(self.parts))]
        self.genes = _unique(tuple(p.genes for p in self.parts))

    def resolve(self, decide: Decide) -> Resolved:
        return _spliced(self.slots, [part.resolve(decide) for part in self.parts])


@dataclass(eq=False)
class RepeatNode(Node):
    times: Node
    items: tuple[Node, ...]               # one per possible layer
    path: str

    def __post_init__(self) -> None:
        self.children = (self.times, *self.items)
        self.slots = [f"{self.path}[{index}]" for index in range(len(self.items))]
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
        return _spliced(self.slots, [item.resolve(decide) for item in self.items[:count]])


def _spliced(slots: Sequence[str], made: list[Resolved]) -> Resolved:
    """One tuple of items, each with its slot under "@" in its address, since a tied item has one path in all its slots."""
    values: list[Any] = []
    addresses: list[Any] = []
    for slot, (value, address) in zip(slots, made, strict=False):
        if type(address) is dict:
            values.append(value)
            addresses.append({"@": slot, **address})
        elif type(address) is tuple:                           # several items, or none
            values += value
            addresses += [a and {**a, "@": join(slot, a["@"])} for a in address]
        else:
            values.append(value)
            addresses.append(None)
    return tuple(values), tuple(addresses)


def join(slot: str, path: str) -> str:
    """A path seen from a slot: a tied item has one path in all its slots."""
    if not slot or not path:
        return slot or path
    outer, _, inner = slot.rpartition("~")
    if path.startswith(inner):
        return f"{outer}~{path}" if outer else path
    return f"{slot}~{path}"


def _unique(groups: tuple[tuple[Gene, ...], ...]) -> tuple[Gene, ...]:
    return tuple({gene.path: gene for group in groups for gene in group}.values())


def walks(visit: Callable[[Decide], Any], options: Callable[[Gene], Sequence[Decision]]) -> Iterator[Any]:
    """What `visit(decide)` returns for every way to answer its questions, the last question turning fastest."""
    fixed: list[int] = []
    while True:
        made: dict[str, Decision] = {}
        turns: list[tuple[int, int]] = []                       # (index, how many) per question

        yield visit(partial(_turn, made, turns, fixed, options))
        while turns and turns[-1][0] + 1 >= turns[-1][1]:
            turns.pop()
        if not turns:
            return
        fixed = [index for index, _ in turns]
        fixed[-1] += 1


def _turn(made: dict[str, Decision], turns: list[tuple[int, int]], fixed: list[int],
          options: Callable[[Gene], Sequence[Decision]], gene: Gene) -> Decision:
    if gene.path not in made:
        offered, turn = options(gene), len(turns)
        index = fixed[turn] if turn < len(fixed) else 0
        turns.append((index, len(offered)))
        made[gene.path] = offered[index]
    return made[gene.path]


def variants(node: Node, limit: int) -> Iterator[Any]:
    """Distinct values of `node` over all its decisions.

    Where there are more than `limit`: over the ends of each range and all candidates of choices. Where those are too many
    as well: over all-first and all-last decisions with each single option put in, and `limit` random ones.
    """
    if not node.genes:
        yield node.resolve(_first)[0]
        return
    for options in (lambda gene: gene.options or (gene.low, gene.high), _ends):
        found = list(itertools.islice(walks(lambda decide: node.resolve(decide)[0], options), 2 * limit + 1))
        if len(found) <= 2 * limit:
            break
    else:
        found = _covering(node, limit)
    # All values are held while they are told apart by identity.
    yield from {_identity(value): value for value in found}.values()


def _ends(gene: Gene) -> Sequence[Decision]:
    if gene.options is None:
        return (gene.low, gene.high)
    if gene.kind == "choice":
        return gene.options
    return tuple(dict.fromkeys((gene.options[0], gene.options[-1])))


def _covering(node: Node, limit: int) -> list[Any]:
    rng = random.Random(0)
    found = []
    for gene in node.genes:
        for option in gene.options or (gene.low, gene.high):
            for base in (_first, _last):
                found.append(node.resolve(lambda g, p=gene.path, o=option, b=base: o if g.path == p else b(g))[0])  # type: ignore[misc]
    for _ in range(limit):
        drawn: dict[str, Decision] = {}
        found.append(node.resolve(lambda g, d=drawn: d.setdefault(g.path, g.sample(rng)))[0])  # type: ignore[misc]
    return found


def _first(gene: Gene) -> Decision:
    return gene.low if gene.options is None else gene.options[0]


def _last(gene: Gene) -> Decision:
    return gene.high if gene.options is None else gene.options[-1]


def _identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_identity(part) for part in value)
    return (type(value), value) if isinstance(value, (int, float, str, type(None))) else id(value)
