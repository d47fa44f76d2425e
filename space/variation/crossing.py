"""Crossover: a child of two genomes whose parts come whole from one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..compiled.outline import count_of
from ..compiled.spec import ChoiceNode, Node, RepeatNode, SubsetNode
from ..genome import Decision, Genome

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["crossover"]

TRIES = 100


def crossover(space: Space, a: Genome, b: Genome, rng: random.Random) -> Genome:
    """A child of two parents that respects nesting and repeats.

    The layers of a repeat are aligned from its start and each comes whole from one parent; how many there are comes from
    one parent. Layers that hold repeats of their own are crossed inside, every other time. What is tied comes from one
    parent. Outside of repeats every field, and every element of a tuple, is a part. Where a hundred children break the
    constraints, the first parent is given back.
    """
    for _ in range(TRIES):
        crossing = _Crossing(space, a, b, rng)
        for root in space.outline.roots:
            crossing.cross(root)
        child = space.canonical(space._fill(crossing.known, rng))
        if not space.violated(child):
            return child
    return a


class _Crossing:
    """One child in the making: `known` are its decisions so far. Nodes to be crossed are there in both parents."""

    def __init__(self, space: Space, a: Genome, b: Genome, rng: random.Random):
        self.outline, self.parents, self.rng = space.outline, (a, b), rng
        self.known: dict[str, Decision] = {}

    def cross(self, node: Node) -> None:
        """Mix the parents below a node that holds repeats; take any other node whole."""
        if id(node) not in self.outline.layered or id(node) in self.outline.tied:
            self.take(node, self.either())
        elif isinstance(node, RepeatNode):
            self.take(node.times, self.either())
            count = count_of(node, self.known)
            present = [range(count_of(node, parent)) for parent in self.parents]
            self.cross_each(node.items[:count], present, list(range(count)))
        elif isinstance(node, SubsetNode):
            self.take_gene(node.gene.path, self.either())
            chosen = self.known[node.gene.path]
            self.cross_each(node.candidates, [p[node.gene.path] for p in self.parents], chosen)     # type: ignore[misc, arg-type]
        elif isinstance(node, ChoiceNode):
            self.cross_choice(node)
        else:
            for part in node.children:
                self.cross(part)

    def either(self) -> Genome:
        return self.parents[self.rng.random() < 0.5]

    def take_gene(self, path: str, parent: Genome) -> None:
        self.known.setdefault(path, parent[path])

    def take(self, node: Node, parent: Genome) -> None:
        """Everything below `node` as it is in one parent, unless something tied was taken already."""
        for gene in node.genes:
            if gene.path in parent:
                self.take_gene(gene.path, parent)

    def cross_choice(self, node: ChoiceNode) -> None:
        a, b = (parent[node.gene.path] for parent in self.parents)
        if a != b:
            self.take(node, self.either())
        else:
            self.take_gene(node.gene.path, self.parents[0])
            self.cross(node.candidates[a])                                           # type: ignore[index]

    def cross_each(self, parts: Sequence[Node], present: Sequence[Sequence[int]], chosen: Sequence[int]) -> None:
        """Every chosen part from a parent that has it; from both, inside, where it holds repeats and chance says so."""
        for index in chosen:
            owners = [parent for parent, indices in zip(self.parents, present, strict=True) if index in indices]
            if len(owners) == 2 and id(parts[index]) in self.outline.layered and self.rng.random() < 0.5:
                self.cross(parts[index])
            elif owners:
                self.take(parts[index], self.rng.choice(owners))
