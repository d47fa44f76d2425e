"""How many genomes a space holds, exactly."""

from __future__ import annotations

from .spec import ChoiceNode, Fixed, Leaf, Node, RecordNode, RepeatNode, SequenceNode, SubsetNode

__all__ = ["NotCountable", "count"]

# Counts by which tied nodes they use: a tied node is decided once, however often it is met, so its own count is
# multiplied in at the end for every set of tied nodes that some genome activates.
Counts = dict[frozenset[int], int]


class NotCountable(ValueError):
    """A space whose genomes cannot be counted exactly; the message names what stands in the way."""


def count(roots: tuple[Node, ...]) -> int:
    """The number of genomes decided by `roots` together. Raises NotCountable for a continuous gene."""
    shared = _shared(roots)
    return _close(_product([_count(root, shared) for root in roots]), shared)


def _shared(roots: tuple[Node, ...]) -> dict[int, Node]:
    """Nodes with genes that are met more than once: the tied ones."""
    met: dict[int, int] = {}
    nodes: dict[int, Node] = {}

    def visit(node: Node) -> None:
        if not node.genes:
            return
        met[id(node)] = met.get(id(node), 0) + 1
        nodes[id(node)] = node
        if met[id(node)] == 1:
            for child in _children(node):
                visit(child)

    for root in roots:
        visit(root)
    return {key: nodes[key] for key, times in met.items() if times > 1}


def _children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, (ChoiceNode, SubsetNode)):
        return node.candidates
    if isinstance(node, (RecordNode, SequenceNode)):
        return node.parts
    if isinstance(node, RepeatNode):
        return (node.times, *node.items)
    return ()


def _count(node: Node, shared: dict[int, Node], inside: bool = False) -> Counts:
    if id(node) in shared and not inside:
        return {frozenset({id(node)}): 1}
    if isinstance(node, Fixed):
        return {frozenset(): 1}
    if isinstance(node, Leaf):
        if node.gene.options is None:
            raise NotCountable(f"a continuous gene has no count: {node.gene.path}; give real(...) a step")
        return {frozenset(): len(node.gene.options)}
    if isinstance(node, ChoiceNode):
        return _sum([_count(c, shared) for c in node.candidates])
    if isinstance(node, SubsetNode):
        return _sum([_product([_count(node.candidates[i], shared) for i in option])      # type: ignore[union-attr]
                     for option in node.gene.options or ()])
    if isinstance(node, (RecordNode, SequenceNode)):
        return _product([_count(part, shared) for part in node.parts])
    assert isinstance(node, RepeatNode)
    return _repeat(node, shared)


def _repeat(node: RepeatNode, shared: dict[int, Node]) -> Counts:
    prefixes: list[Counts] = [{frozenset(): 1}]
    for item in node.items:
        prefixes.append(_product([prefixes[-1], _count(item, shared)]))
    if id(node.times) not in shared:
        return _sum([prefixes[times] for times in node.counts()])
    if len(node.counts()) == 1:
        return prefixes[node.counts()[0]]
    raise NotCountable(f"a tied number of layers used twice is not counted: {node.path}.times")


def _sum(parts: list[Counts]) -> Counts:
    total: Counts = {}
    for part in parts:
        for used, number in part.items():
            total[used] = total.get(used, 0) + number
    return total


def _product(parts: list[Counts]) -> Counts:
    total: Counts = {frozenset(): 1}
    for part in parts:
        made: Counts = {}
        for used_a, a in total.items():
            for used_b, b in part.items():
                made[used_a | used_b] = made.get(used_a | used_b, 0) + a * b
        total = made
    return total


def _close(counts: Counts, shared: dict[int, Node]) -> int:
    """Multiply in the tied nodes each genome uses; what is tied inside a tied node is counted with it."""
    while any(counts):
        opened: Counts = {}
        for used, number in counts.items():
            if not used:
                opened[used] = opened.get(used, 0) + number
                continue
            outer = _outermost(used, shared)
            inner = _count(shared[outer], shared, inside=True)
            for extra, times in inner.items():
                key = (used - {outer}) | extra
                opened[key] = opened.get(key, 0) + number * times
        counts = opened
    return counts.get(frozenset(), 0)


def _outermost(used: frozenset[int], shared: dict[int, Node]) -> int:
    """A used tied node that lies inside no other used one, so that each is opened exactly once."""
    def inside(node: Node) -> set[int]:
        found: set[int] = set()
        for child in _children(node):
            found |= {id(child)} | inside(child)
        return found

    for key in sorted(used):
        if not any(key in inside(shared[other]) for other in used if other != key):
            return key
    raise AssertionError("tied nodes form a tree")
