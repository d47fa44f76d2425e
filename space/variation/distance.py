"""How far two genomes of one space are apart: a metric that follows the nesting and aligns layers.

Genes are compared one by one, each with a metric of at most 1, in which not being there is 1 away from everything. Layers
of a repeat are letters of a word: words are compared by edit distance over a metric alphabet with a metric gap, which is a
metric again (Some Biological Sequence Metrics, Waterman, Smith and Beyer, 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..compiled.outline import Decisions, Outline, active_children, count_of
from ..compiled.spec import ChoiceNode, Gene, Leaf, Node, RepeatNode, SubsetNode
from ..genome import Decision, Genome

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["distance"]


def distance(space: Space, a: Genome, b: Genome) -> float:
    """The cheapest way from one genome to the other, in decisions.

    A decision that is another costs 1, a number its step as a share of its range, a subset the share of its candidates
    that come or go. A layer put in or taken out costs 1 and its decisions. Decisions below a candidate that only one of
    the two has cost 1 each. What is tied counts once. Zero exactly for equal genomes, symmetric, and never longer than a
    detour. Time is quadratic in the number of layers.
    """
    apart = _Apart(space.outline)
    below = sum(apart.nodes(root, a, root, b) for root in space.outline.roots)
    tied = {gene.path: gene for root in space.outline.roots for gene in apart.tied_genes(root)}
    return below + sum(_once(gene, a, b) for gene in tied.values())


def _once(gene: Gene, a: Decisions, b: Decisions) -> float:
    if gene.path in a and gene.path in b:
        return step(gene, a[gene.path], b[gene.path])
    return float((gene.path in a) != (gene.path in b))


def step(gene: Gene, a: Decision, b: Decision) -> float:
    """How far two options of one gene are apart: a metric of at most 1."""
    if a == b:
        return 0.0
    if isinstance(a, tuple) and isinstance(b, tuple):
        if not gene.ordered:
            return len(set(a) ^ set(b)) / gene.items
        longer = max(len(a), len(b))
        return sum(x != y for x, y in zip(_padded(a, longer), _padded(b, longer), strict=True)) / gene.items
    if gene.options is None:
        return float(abs(a - b) / (gene.high - gene.low))                            # type: ignore[operator]
    if gene.numbers:
        x, y = gene.numbers[gene.index[a]], gene.numbers[gene.index[b]]
        return abs(x - y) / (max(gene.numbers) - min(gene.numbers))
    return 1.0


def _padded(order: tuple[int, ...], length: int) -> tuple[int, ...]:
    return order + (-1,) * (length - len(order))


class _Apart:
    """Distances below two nodes of one make: the same node, or two layers of one repeat. Tied nodes are left out."""

    def __init__(self, outline: Outline):
        self.tied = outline.tied

    def nodes(self, one: Node, a: Decisions, other: Node, b: Decisions) -> float:
        if not one.genes or id(one) in self.tied:
            return 0.0
        if isinstance(one, Leaf) and isinstance(other, Leaf):
            return step(one.gene, a[one.gene.path], b[other.gene.path])
        if isinstance(one, ChoiceNode) and isinstance(other, ChoiceNode):
            return self._choices(one, a, other, b)
        if isinstance(one, RepeatNode) and isinstance(other, RepeatNode):
            return self._words(one.items[:count_of(one, a)], a, other.items[:count_of(other, b)], b)
        if isinstance(one, SubsetNode) and isinstance(other, SubsetNode):
            return self._subsets(one, a, other, b)
        return sum(self.nodes(x, a, y, b) for x, y in zip(one.children, other.children, strict=True))

    def _choices(self, one: ChoiceNode, a: Decisions, other: ChoiceNode, b: Decisions) -> float:
        i, j = a[one.gene.path], b[other.gene.path]
        x, y = one.candidates[i], other.candidates[j]                                # type: ignore[index]
        if i == j:
            return self.nodes(x, a, y, b)
        return step(one.gene, i, j) + self.weight(x, a) + self.weight(y, b)

    def _subsets(self, one: SubsetNode, a: Decisions, other: SubsetNode, b: Decisions) -> float:
        i, j = a[one.gene.path], b[other.gene.path]
        total = step(one.gene, i, j)
        for index in sorted(set(i) | set(j)):                                        # type: ignore[arg-type]
            x, y = one.candidates[index], other.candidates[index]
            if index in i and index in j:                                            # type: ignore[operator]
                total += self.nodes(x, a, y, b)
            else:
                total += self.weight(x, a) if index in i else self.weight(y, b)      # type: ignore[operator]
        return total

    def _words(self, ones: Sequence[Node], a: Decisions, others: Sequence[Node], b: Decisions) -> float:
        """Edit distance of two rows of layers."""
        gaps_a, gaps_b = ([1 + self.weight(layer, g) for layer in layers] for layers, g in ((ones, a), (others, b)))
        row = [0.0]
        for gap in gaps_b:
            row.append(row[-1] + gap)
        for x, gap_a in zip(ones, gaps_a, strict=True):
            above, row = row, [row[0] + gap_a]
            for column, (y, gap_b) in enumerate(zip(others, gaps_b, strict=True)):
                cheapest = min(above[column + 1] + gap_a, row[column] + gap_b)
                # No two layers differ by less than their gaps do, which often saves comparing them.
                if above[column] + abs(gap_a - gap_b) < cheapest:
                    cheapest = min(cheapest, above[column] + self.nodes(x, a, y, b))
                row.append(cheapest)
        return row[-1]

    def weight(self, node: Node, genome: Decisions) -> float:
        """The distance of what is below a node from its not being there."""
        if not node.genes or id(node) in self.tied:
            return 0.0
        own = float(isinstance(node, (Leaf, ChoiceNode, SubsetNode)))
        if isinstance(node, RepeatNode):
            return sum(1 + self.weight(item, genome) for item in node.items[:count_of(node, genome)])
        return own + sum(self.weight(child, genome) for child in active_children(node, genome))

    def tied_genes(self, node: Node) -> Sequence[Gene]:
        """The genes at and below tied nodes."""
        if not node.genes:
            return ()
        if id(node) in self.tied:
            return node.genes
        return [gene for child in node.children for gene in self.tied_genes(child)]
