"""What variation and distances need to know of a compiled space beside its nodes: what is tied, what holds layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..genome import Decision
from .spec import ChoiceNode, Node, RepeatNode, SubsetNode

__all__ = ["Decisions", "Outline", "active_children", "count_of", "met_twice"]

Decisions = Mapping[str, Decision]


def met_twice(roots: Iterable[Node]) -> set[int]:
    """Ids of the nodes that hold genes and stand in more than one place: the tied ones."""
    places: dict[int, int] = {}
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node.genes:
            places[id(node)] = places.get(id(node), 0) + 1
            if places[id(node)] == 1:
                todo += node.children
    return {key for key, number in places.items() if number > 1}


class Outline:
    """roots: the nodes of the fields. tied: ids of nodes in more than one place. layered: ids of nodes that hold repeats.

    repeats: every repeat that keeps its first layers, outer ones before those inside.
    """

    def __init__(self, roots: Sequence[Node]):
        self.roots = tuple(roots)
        self.tied = met_twice(roots)
        self.layered: set[int] = set()
        self.repeats: dict[int, RepeatNode] = {}
        for root in roots:
            self._visit(root)

    def _visit(self, node: Node) -> bool:
        if not node.genes:
            return False
        if isinstance(node, RepeatNode):
            self.repeats.setdefault(id(node), node)
        below = [self._visit(child) for child in node.children]
        is_layered = isinstance(node, RepeatNode) or (isinstance(node, SubsetNode) and node.is_repeat) or any(below)
        if is_layered:
            self.layered.add(id(node))
        return is_layered

    def active_repeats(self, genome: Decisions) -> list[RepeatNode]:
        """The repeats that are there in `genome` and keep their first layers."""
        found: dict[int, RepeatNode] = {}
        todo = list(self.roots)
        while todo:
            node = todo.pop(0)
            if id(node) in self.layered:
                if isinstance(node, RepeatNode):
                    found[id(node)] = node
                todo += active_children(node, genome)
        return list(found.values())


def active_children(node: Node, genome: Decisions) -> Sequence[Node]:
    """The nodes directly below that are there in `genome`."""
    if isinstance(node, ChoiceNode):
        return (node.candidates[genome[node.gene.path]],)                            # type: ignore[index]
    if isinstance(node, SubsetNode):
        return [node.candidates[i] for i in genome[node.gene.path]]                  # type: ignore[union-attr]
    if isinstance(node, RepeatNode):
        return (node.times, *node.items[:count_of(node, genome)])
    return node.children


def count_of(node: RepeatNode, decisions: Decisions) -> int:
    """How many layers a repeat has."""
    count: int = node.times.resolve(lambda gene: decisions[gene.path])[0]
    return count
