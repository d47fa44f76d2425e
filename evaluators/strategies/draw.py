"""Drawing a subnet: siblings are dealt, sizes are chosen.

Candidates that are dataclasses (attention or Mamba-2, once or looped) differ in structure, and operators among them
share no weights: what one learns is lost on its siblings. Plain values (heads, ratio, depth) are sizes of one tensor.
Hence siblings are dealt like cards, every one exactly once per round (fairness as in FairNAS, Chu et al., 2019), and
sizes are chosen: the largest, the smallest, at random, or as a strategy says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ...space.compiled.spec import ChoiceNode, Fixed, Gene, Node
from ...space.elastic.layout import walk
from ...space.genome import Decision

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.genome import Genome
    from ...space.space import Space

__all__ = ["Choose", "Kind", "Sizes", "any_size", "draw", "kind_of", "largest", "largest_size", "sibling_genes",
           "sizes_of", "smallest_size"]

TRIES = 50
DEPTHS = {"times", "depth", "layers"}
WIDTHS = {"width", "ratio", "hidden", "expand", "expansion"}

Kind = Literal["operator", "depth", "width"]
Choose = Callable[[Gene, tuple[Decision, ...], random.Random], Decision]


@dataclass(frozen=True)
class Sizes:
    """The genes of a space as training sees them: siblings, and the decisions of the others from small to large."""

    siblings: tuple[Gene, ...]
    ordered: dict[str, tuple[Decision, ...]]


@lru_cache(maxsize=64)
def sizes_of(space: Space) -> Sizes:
    """The genes of `space`, sorted into siblings and sizes. Remembered for the last spaces."""
    choices = {node.gene.path: node for name in space.definition for node in walk(space.node(name))
               if isinstance(node, ChoiceNode)}
    siblings = {path for path, node in choices.items() if any(_is_structure(c) for c in node.candidates)}
    return Sizes(tuple(gene for gene in space.genes if gene.path in siblings),
                 {gene.path: _from_small_to_large(gene, choices.get(gene.path))
                  for gene in space.genes if gene.path not in siblings})


def sibling_genes(space: Space) -> tuple[Gene, ...]:
    """The choices among dataclasses, whose candidates differ in structure and not only in size."""
    return sizes_of(space).siblings


def kind_of(gene: Gene) -> Kind:
    """What a size changes: how many layers or iterations run, how wide activations are, or something in an operator.

    Told by the name of the field: `times` and any subset of layers are depth; `width`, `ratio` and the like are
    width.
    """
    words = [word for word in gene.path.replace("'", "").split(".") if not word.isdigit()]
    field = words[-1].partition("[")[0]
    if field in DEPTHS or gene.kind == "subset":
        return "depth"
    return "width" if field in WIDTHS else "operator"


@lru_cache(maxsize=64)
def largest(space: Space) -> Architecture:
    """The one largest architecture: siblings as in `space.largest()`, which has the most parameters, all sizes largest.

    Sizes that cost no parameters (heads, windows) are then at their largest too.
    """
    genome = space.largest()
    siblings = {gene.path: genome.get(gene.path, (gene.options or (0,))[0]) for gene in sibling_genes(space)}
    return _allowed(space, siblings, largest_size, random.Random(0))


def any_size(gene: Gene, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
    return gene.sample(rng)


def largest_size(gene: Gene, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
    return _as_large_as(ordered[-1], ordered, rng)


def smallest_size(gene: Gene, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
    return _as_large_as(ordered[0], ordered, rng)


def _as_large_as(decision: Decision, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
    """Any subset of as many members; numbers have no equals."""
    if not isinstance(decision, tuple):
        return decision
    return rng.choice([other for other in ordered if isinstance(other, tuple) and len(other) == len(decision)])


def draw(space: Space, step: int, seed: int, choose: Choose = any_size, deal: int = 0) -> Architecture:
    """A subnet with siblings as dealt in this step and sizes as `choose` says.

    Where constraints forbid that, the largest sizes are lowered and the smallest raised one at a time, others chosen
    again; after 50 attempts the space samples a genome of its own. `deal` numbers independent deals.
    """
    rng = random.Random(f"{seed}/{step}/{_names.get(choose, 'chosen')}/{deal}")
    return _allowed(space, {gene.path: _deal(gene, step, seed, deal) for gene in sibling_genes(space)}, choose, rng)


def _allowed(space: Space, siblings: dict[str, Decision], choose: Choose, rng: random.Random) -> Architecture:
    """The architecture with these siblings and sizes as chosen, or another that constraints allow."""
    found = sizes_of(space)
    sizes = _chosen(space, found, choose, rng)
    for _ in range(TRIES):
        genome = space.from_complete({**sizes, **siblings})
        if not space.violated(genome):
            return space.architecture(genome)
        sizes = _again(space, found, choose, sizes, genome, rng)
    return space.architecture(space.sample_genome(rng))


_names: dict[Any, str] = {any_size: "random", largest_size: "largest", smallest_size: "smallest"}


def _chosen(space: Space, found: Sizes, choose: Choose, rng: random.Random) -> dict[str, Decision]:
    return {gene.path: choose(gene, found.ordered[gene.path], rng) if found.ordered[gene.path] else gene.sample(rng)
            for gene in space.genes if gene.path in found.ordered}


def _again(space: Space, found: Sizes, choose: Choose, sizes: dict[str, Decision], genome: Genome,
           rng: random.Random) -> dict[str, Decision]:
    """Other sizes after a constraint was broken."""
    if choose not in (largest_size, smallest_size):
        return _chosen(space, found, choose, rng)
    step, end = (-1, 0) if choose is largest_size else (1, -1)
    movable = [path for path in sizes if path in genome and len(found.ordered[path]) > 1
               and sizes[path] != found.ordered[path][end]]
    if not movable:
        return _chosen(space, found, any_size, rng)
    path = rng.choice(movable)
    ordered = found.ordered[path]
    place = ordered.index(sizes[path]) + step if sizes[path] in ordered else end
    return {**sizes, path: ordered[place]}


def _deal(gene: Gene, step: int, seed: int, deal: int) -> Decision:
    """Every option once per round of as many steps, in a fresh order per round and gene."""
    options = list(gene.options or ())
    number, turn = divmod(step, len(options))
    random.Random(f"{seed}/{gene.path}/{number}/{deal}").shuffle(options)
    return options[turn]


def _is_structure(node: Node) -> bool:
    return not isinstance(node, Fixed) or is_dataclass(node.value)


def _from_small_to_large(gene: Gene, choice: ChoiceNode | None) -> tuple[Decision, ...]:
    """Numbers by value, None (no limit) above them, subsets by length; empty where decisions have no such order."""
    if gene.kind not in ("choice", "integer", "real", "subset"):
        return ()
    if gene.options is None:
        return gene.low, gene.high
    if choice is not None:
        values = [candidate.value for candidate in choice.candidates if isinstance(candidate, Fixed)]
        return tuple(sorted(gene.options, key=lambda option: _rank(values[option])))    # type: ignore[index]
    sizes = {len(option) if isinstance(option, tuple) else option for option in gene.options}
    if len(sizes) == 1 and len(gene.options) > 1:       # orders of the same things, or as many of them
        return ()
    return tuple(sorted(gene.options, key=lambda o: (len(o) if isinstance(o, tuple) else o)))


def _rank(value: Any) -> tuple[int, float]:
    if isinstance(value, (int, float)):
        return 0, float(value)
    return (1, 0.0) if value is None else (0, 0.0)
