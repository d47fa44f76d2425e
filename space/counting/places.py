"""The compiled space as counting and constraints read it: a tree of positions.

A node of the compiled space that is tied stands in it once for every place where it is used, so that a place may be marked
by itself. Every place is walked the same way: it decides a gene or none, and then its branch for that decision is walked.
What a constraint has to do with a place is written on it by `constraints.binding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from ..compiled.spec import ChoiceNode, Fixed, Gene, Leaf, Node, RecordNode, RepeatNode, SequenceNode, SubsetNode

__all__ = ["ABSENT", "Action", "Place", "Slots", "State", "children_of", "places_of", "tied_nodes"]

State = tuple[Any, ...]                 # what the walk remembers, by slot
Slots = list[Any]                       # the same while it changes


class _Absent:
    """Not known: not decided yet, or not part of the architecture."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


class Action(Protocol):
    """What happens when all below a place has been walked. Equal actions do the same."""

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that are read and written."""
        ...

    def __call__(self, state: Slots, broken: set[int] | None) -> bool:
        """Change the state; False when a rule breaks, unless `broken` collects the numbers of broken rules."""
        ...


class Place:
    """A position in the space.

    gene: what is decided here, None where nothing is. cls, parts: of a dataclass, its class and fields. items: of a
    sequence or a repeat. candidates: of a choice or subset. values: plain values by option, of a fixed value, a number, a
    repeat's count.

    Marks: `sets` slots get the value decided here. `sticky` holds the option of a gene met again; `met` says that a tied
    place was walked before; `shares_count`: a repeat whose count is tied. `closing` is done when all below has been walked,
    after which the `own` slots are forgotten. `exposed` are slots that this place shares with the rest; without any it is
    counted by itself. `spoken` are those of constraints among them. `is_free`: no marks here or below. `is_idle`: nothing
    is decided either.
    """

    __slots__ = ("candidates", "closing", "cls", "exposed", "gene", "is_free", "is_idle", "items", "kind", "met", "node",
                 "own", "parts", "path", "sets", "shape", "shares_count", "spoken", "sticky", "tie", "values", "_branches",
                 "_option")

    def __init__(self, kind: str, path: str, node: Node | None = None, gene: Gene | None = None, tie: int | None = None):
        self.kind, self.path, self.node, self.gene, self.tie = kind, path, node, gene, tie
        self.cls: type | None = None
        self.parts: dict[str, Place] = {}
        self.items: tuple[Place, ...] = ()
        self.candidates: tuple[Place, ...] = ()
        self.values: Sequence[Any] = ()
        self.sets: list[int] = []
        self.own: list[int] = []
        self.closing: list[Action] = []
        self.sticky: int | None = None
        self.met: int | None = None
        self.shares_count = False
        self.exposed: frozenset[int] = frozenset()
        self.spoken: frozenset[int] = frozenset()
        self.is_free = True
        self.is_idle = False
        self.shape = -1
        self._branches: dict[int, tuple[Place, ...]] = {}
        self._option: dict[Any, int] | None = None

    def __repr__(self) -> str:
        return f"Place({self.kind} at {self.path})"

    @property
    def is_closed(self) -> bool:
        """Whether nothing outside depends on what is decided here, nor the other way round."""
        return not self.exposed

    @property
    def num_options(self) -> int:
        """How many branches there are; a continuous gene counts as one."""
        return 1 if self.gene is None or self.gene.options is None else len(self.gene.options)

    def option_of(self, decision: Any) -> int:
        """The index of a decision among the options. Raises KeyError for one that is not among them."""
        if self._option is None:
            assert self.gene is not None
            self._option = {option: index for index, option in enumerate(self.gene.options or ())}
        return self._option[decision]

    def branch(self, option: int) -> tuple[Place, ...]:
        """The places walked after `option` was decided, those with anything to decide or to do."""
        found = self._branches.get(option)
        if found is None:
            found = self._branches[option] = tuple(p for p in self.below(option) if not p.is_idle)
        return found

    def below(self, option: int) -> Sequence[Place]:
        """All places of a branch."""
        if self.kind == "record":
            return tuple(self.parts.values())
        if self.kind == "choice":
            return (self.candidates[option],)
        if self.kind == "subset":
            assert self.gene is not None and self.gene.options is not None
            return [self.candidates[index] for index in self.gene.options[option]]            # type: ignore[union-attr]
        if self.kind == "repeat":
            return self.items[:self.values[option]]
        return self.items

    @property
    def inner(self) -> tuple[Place, ...]:
        """All places directly below, whichever branch."""
        return (*self.parts.values(), *self.items, *self.candidates)

    def walk(self) -> Iterator[Place]:
        """This place and every one below it."""
        yield self
        for place in self.inner:
            yield from place.walk()


def places_of(roots: Mapping[str, Node]) -> Place:
    """The tree of positions of a compiled space; its root stands for the space, with the top-level fields as parts."""
    ties = {key: number for number, key in enumerate(tied_nodes(roots.values()))}
    root = Place("record", "")
    root.parts = {name: _place(node, name, ties) for name, node in roots.items()}
    return root


def tied_nodes(roots: Iterator[Node] | Any) -> dict[int, Node]:
    """Nodes with genes that are met more than once: the tied ones, in the order they are met."""
    met: dict[int, int] = {}
    nodes: dict[int, Node] = {}
    stack = list(roots)[::-1]
    while stack:
        node = stack.pop()
        if node.genes:
            met[id(node)] = met.get(id(node), 0) + 1
            if met[id(node)] == 1:
                nodes[id(node)] = node
                stack.extend(children_of(node)[::-1])
    return {key: node for key, node in nodes.items() if met[key] > 1}


def children_of(node: Node) -> tuple[Node, ...]:
    """The nodes directly below."""
    if isinstance(node, (ChoiceNode, SubsetNode)):
        return node.candidates
    if isinstance(node, (RecordNode, SequenceNode)):
        return node.parts
    return (node.times, *node.items) if isinstance(node, RepeatNode) else ()


def _place(node: Node, path: str, ties: Mapping[int, int]) -> Place:
    tie = ties.get(id(node))
    if isinstance(node, Fixed):
        return _fixed(node.value, path)
    if isinstance(node, Leaf):
        place = Place("leaf", path, node, node.gene, tie)
        place.values = node.gene.options or ()
    elif isinstance(node, ChoiceNode):
        place = Place("choice", path, node, node.gene, tie)
        place.candidates = tuple(_place(candidate, path, ties) for candidate in node.candidates)
    elif isinstance(node, SubsetNode):
        place = Place("subset", path, node, node.gene, tie)
        mark = "{}[{}]" if getattr(node, "is_repeat", False) else "{}.{}"
        place.candidates = tuple(_place(c, mark.format(path, i), ties) for i, c in enumerate(node.candidates))
        place.values = [len(option) for option in node.gene.options or ()]                    # type: ignore[arg-type]
    elif isinstance(node, RecordNode):
        place = Place("record", path, node, None, tie)
        place.cls = node.cls
        place.parts = {n: _place(p, f"{path}.{n}", ties) for n, p in zip(node.names, node.parts, strict=True)}
    elif isinstance(node, RepeatNode):
        place = Place("repeat", path, node, _gene_of(node.times), tie)
        place.values = node.counts()
        place.shares_count = id(node.times) in ties
        place.items = tuple(_place(item, f"{path}[{i}]", ties) for i, item in enumerate(node.items))
    else:
        assert isinstance(node, SequenceNode)
        place = Place("sequence", path, node, None, tie)
        place.items = tuple(_place(part, f"{path}.{i}", ties) for i, part in enumerate(node.parts))
    return place


def _gene_of(times: Node) -> Gene | None:
    return getattr(times, "gene", None)


def _fixed(value: Any, path: str) -> Place:
    """The places of a part of the space without decisions."""
    if is_dataclass(value) and not isinstance(value, type):
        place = Place("record", path)
        place.cls = type(value)
        place.parts = {f.name: _fixed(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value) if f.init}
        place.values = (value,)
    elif isinstance(value, tuple) and any(is_dataclass(part) for part in value):
        place = Place("sequence", path)
        place.items = tuple(_fixed(part, f"{path}.{i}") for i, part in enumerate(value))
    else:
        place = Place("plain", path)
        place.values = (value,)
    return place
