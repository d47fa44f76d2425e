"""Where weights live: every operator a space can build, with the address its parameters are stored under.

An address names the slot (a position in the body), the candidate operator, and the parameter. Choices nested in an
operator (heads, ratio) do not enter the address, so their sizes share one tensor; sibling candidates do, so they do not.
Two walks must agree: `sites` over the compiled space, for a supernet, and `addresses` over one resolved network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, NamedTuple

from ..compiled.spec import ChoiceNode, Fixed, Node, RecordNode, RepeatNode, SequenceNode, SubsetNode, join, variants
from ..macros.base import Macro, as_items, is_absent
from ..operator import Operator
from ..plan import Block, Loop

__all__ = ["Homes", "Site", "Survey", "addresses", "layers_of", "loop_sites", "walk"]

MAX_VARIANTS = 4096
Widths = frozenset[int]
Homes = tuple[dict[str, tuple[Any, Any]], tuple[Any, ...], tuple[Any, ...]]     # resolved parts, layers, their addresses


class Site(NamedTuple):
    """One place for weights: its address, the operators that may stand there, the widths that may reach it.

    origins: for operators that a macro around makes of others, those.
    """

    address: str
    operators: list[Operator]
    widths: Widths
    origins: Mapping[Operator, tuple[Operator, ...]] = MappingProxyType({})

    def rewritten(self, rewrite: Callable[[Any], Any]) -> Site:
        """The site with what a macro around may make of its operators; each origin once, however many rewrites there are."""
        origins: dict[Operator, tuple[Operator, ...]] = {}
        for operator in self.operators:
            for changed in (operator, rewrite(operator)):
                found = (*origins.get(changed, ()), *self.origins.get(operator, (operator,)))
                origins[changed] = tuple(dict.fromkeys(found))
        return self._replace(operators=list(origins), origins=origins)

    def pairs(self) -> Iterator[tuple[Operator, int]]:
        """Every operator at every width, without those that cannot be built, which no genome of a checked space has."""
        for operator in self.operators:
            for width in sorted(self.widths):
                try:
                    operator.check(width, self.address)
                except (ValueError, TypeError):
                    continue
                yield operator, width


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it; tied nodes appear wherever they are used."""
    yield node
    children: Iterable[Node] = ()
    if isinstance(node, (ChoiceNode, SubsetNode)):
        children = node.candidates
    elif isinstance(node, (RecordNode, SequenceNode)):
        children = node.parts
    elif isinstance(node, RepeatNode):
        children = (node.times, *node.items)
    for child in children:
        yield from walk(child)


class Survey:
    """Every site of a compiled body, and of the loops in it: `loops` holds (address, recursions, sites inside)."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.loops: list[tuple[str, list[Loop], list[Site]]] = []

    def visit(self, node: Node, widths: Widths, slot: str = "") -> Widths:
        """Collect the sites below `node`, which a stream of `widths` reaches; returns the widths that may leave it."""
        if isinstance(node, RepeatNode):
            return self._repeat(node, widths, slot)
        if isinstance(node, SequenceNode):
            for index, part in enumerate(node.parts):
                widths = self.visit(part, widths, join(slot, node.slots[index]))
            return widths
        if isinstance(node, ChoiceNode):
            return frozenset().union(*(self.visit(candidate, widths, slot) for candidate in node.candidates))
        if isinstance(node, SubsetNode):
            reaching = self._reaching(node, widths)
            for index, candidate in enumerate(node.candidates):
                self.visit(candidate, reaching, join(slot, node.slots[index]))
            return reaching
        if isinstance(node, Fixed) and isinstance(node.value, tuple):
            for item, where in zip(node.value, node.address or (), strict=True):
                widths = self.visit(Fixed(item, where), widths, join(slot, where.get("@", "")))
            return widths
        return self._item(node, widths, slot)

    def _reaching(self, node: SubsetNode, widths: Widths) -> Widths:
        """The widths that may reach or leave a candidate, whichever others come before it."""
        while True:
            wider = widths.union(*(Survey().visit(candidate, widths) for candidate in node.candidates))
            if wider == widths:
                return widths
            widths = wider

    def _repeat(self, node: RepeatNode, widths: Widths, slot: str) -> Widths:
        counts, leaving = set(node.counts()), frozenset(widths if 0 in node.counts() else ())
        for index, item in enumerate(node.items):
            widths = self.visit(item, widths, join(slot, node.slots[index]))
            leaving |= widths if index + 1 in counts else frozenset()
        return leaving

    def _item(self, node: Node, widths: Widths, slot: str) -> Widths:
        cls = node.cls if isinstance(node, RecordNode) else type(getattr(node, "value", None))
        if issubclass(cls, Block):
            self._block(fields_of(node), widths, slot)
            return widths
        if issubclass(cls, Macro):
            return self._macro(cls, node, widths, slot)
        if issubclass(cls, Operator) and cls.kind != "identity":
            self.sites.append(Site(join(slot, path_of(node)), list(variants(node, MAX_VARIANTS)), widths))
        return widths

    def _block(self, parts: dict[str, Node], widths: Widths, slot: str) -> None:
        placements = {value for value in variants(parts["placement"], MAX_VARIANTS)}
        around = [(path_of(node), list(variants(node, MAX_VARIANTS))) for name in ("norm", "join")
                  for node in operator_nodes(parts[name])]
        around += [(f"{path_of(node)}|out", list(variants(node, MAX_VARIANTS))) for node in operator_nodes(parts["norm"])
                   if "peri" in placements]
        for role in ("mixer", "channel"):
            self.visit(parts[role], widths, slot)
            for home in dict.fromkeys(join(slot, path_of(node)) for node in operator_nodes(parts[role])):
                self.sites += [Site(f"{home}|{path}", operators, widths) for path, operators in around]

    def _macro(self, cls: type[Macro], node: Node, widths: Widths, slot: str) -> Widths:
        parts, first, home = fields_of(node), len(self.sites), join(slot, path_of(node))
        shells = list(_shells(cls, parts))

        def numbers(name: str) -> list[Any]:
            return list(dict.fromkeys(getattr(shell, name) for shell in shells))

        leaving = cls.survey(widths, numbers, lambda name, inner: self.visit(parts[name], inner, slot))
        for rewrite in dict.fromkeys(rewrite for shell in shells for rewrite in shell.rewrites()):
            self.sites[first:] = [site.rewritten(rewrite) for site in self.sites[first:]]
        if "recursion" in parts:
            inside = self.sites[first:]
            self.loops += [(join(slot, where), loops, inside) for where, loops in loop_sites(parts["recursion"])]
        self.sites.append(Site(home, shells, widths))                                # type: ignore[arg-type]
        return leaving


def _shells(cls: type[Macro], parts: dict[str, Node]) -> Iterator[Macro]:
    """The macro with every combination of its plain fields and of how many parts it holds; placeholders for parts."""
    options = [[(None,) * n for n in _lengths(node)] if name in cls.holds else list(variants(node, MAX_VARIANTS))
               for name, node in parts.items()]
    for values in itertools.islice(itertools.product(*options), MAX_VARIANTS):
        yield cls(**dict(zip(parts, values, strict=True)))


def _lengths(node: Node) -> list[int]:
    """How many items a field of parts may hold."""
    if isinstance(node, RepeatNode):
        items = [_lengths(item) for item in node.items]
        return sorted({total for count in node.counts() for total in _sums(items[:count])})
    if isinstance(node, SequenceNode):
        return _sums([_lengths(part) for part in node.parts])
    if isinstance(node, ChoiceNode):
        return sorted({n for candidate in node.candidates for n in _lengths(candidate)})
    if isinstance(node, SubsetNode):
        return sorted({len(option) for option in node.gene.options or ()})           # type: ignore[arg-type]
    if isinstance(node, Fixed):
        return [len(as_items(node.value))]
    return [1]


def _sums(lengths: list[list[int]]) -> list[int]:
    totals = {0}
    for options in lengths:
        totals = {total + n for total in totals for n in options}
    return sorted(totals)


def operator_nodes(node: Node) -> Iterator[Node]:
    """The candidates at a field that holds one operator or a choice of them, without `Identity()`."""
    if isinstance(node, ChoiceNode):
        for candidate in node.candidates:
            yield from operator_nodes(candidate)
    elif getattr(node.cls if isinstance(node, RecordNode) else getattr(node, "value", None), "kind", "") != "identity":
        yield node


def path_of(node: Node) -> str:
    """The path of a dataclass in the space."""
    return node.path if isinstance(node, RecordNode) else node.address[""]           # type: ignore[attr-defined, no-any-return]


def fields_of(node: Node) -> dict[str, Node]:
    """The fields of a dataclass, whether or not it has decisions."""
    if isinstance(node, RecordNode):
        return dict(zip(node.names, node.parts, strict=True))
    assert isinstance(node, Fixed)
    return {f.name: Fixed(getattr(node.value, f.name), node.address.get(f.name)) for f in fields(node.value) if f.init}


def layers_of(resolved: tuple[Any, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The items of a resolved body that are there, in order, with their addresses."""
    value, where = resolved
    if not isinstance(value, tuple):
        value, where = (value,), (where,)
    kept = [i for i, item in enumerate(value) if not is_absent(item)]
    return tuple([value[i] for i in kept]), tuple([where[i] for i in kept])


def addresses(parts: dict[str, tuple[Any, Any]], layers: tuple[Any, ...], where: tuple[Any, ...],
              width: int) -> dict[str, str]:
    """The weight address of every module prefix of the built model; a loop's own is under `PREFIX.lora`."""
    found = {name: parts[name][1][""] for name in ("embed", "head", "norm")}
    for index, (item, place) in enumerate(zip(layers, where, strict=True)):
        _place(item, place, f"layers.{index}", "", width, found)
    found["lora"] = (parts["recursion"][1] or {"": "recursion"})[""]
    return found


def _place(item: Any, place: Any, prefix: str, slot: str, width: int, found: dict[str, str]) -> None:
    slot = join(slot, place.get("@", ""))
    found[prefix] = join(slot, place[""])
    if isinstance(item, Block):
        for role, op in item.sublayers():
            _place(op, place[role], f"{prefix}.{role}.op", slot, width, found)
            home = found[f"{prefix}.{role}.op"]
            for name, _, held in item.around():
                end = "|out" if name == "out_norm" else ""
                found[f"{prefix}.{role}.{name}"] = f"{home}|{place[held]['']}{end}"
    elif isinstance(item, Macro):
        if place.get("recursion"):
            found[f"{prefix}.lora"] = join(slot, place["recursion"][""])
        for part in item.parts(width, 1):
            inner = place[part.at[0]] if len(part.at) == 1 else place[part.at[0]][part.at[1]]
            _place(part.item, inner, f"{prefix}.{part.name}", slot, part.width, found)


def loop_sites(node: Node) -> Iterator[tuple[str, list[Loop]]]:
    """(address, loops) of the candidates of a recursion."""
    for candidate in operator_nodes(node):
        loops = [value for value in variants(candidate, MAX_VARIANTS) if isinstance(value, Loop)]
        if loops:
            yield path_of(candidate), loops
