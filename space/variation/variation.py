"""Operators of variation: mutation, crossover, and the neighbourhood of local search.

Every function takes a space and canonical genomes of it and gives canonical genomes of it that satisfy its constraints.
A mutation is a small function `(space, genome, rng) -> decisions`: what is missing from the decisions is drawn, and None
says that it does not apply to this genome.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..compiled.outline import Decisions, count_of
from ..compiled.spec import Gene, RepeatNode
from ..genome import Decision, Genome
from .editing import arranged
from .nearby import adjacent, near_options

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["MUTATIONS", "insert_layer", "mutate", "neighbours", "one_gene", "remove_layer", "resize", "subtree",
           "swap_layers"]

TRIES = 100
MAX_FORMS = 256
T = TypeVar("T")
Mutation = Callable[["Space", Genome, random.Random], Decisions | None]


def one_gene(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """One decision is drawn again; what it opens is drawn, what it closes is forgotten."""
    gene = _any_of([gene for gene in _active(space, genome) if gene.is_open], rng)
    if gene is None:
        return None
    now = genome[gene.path]
    if gene.kind == "subset":
        return {**genome, gene.path: rng.choice(near_options(gene, now))}
    while (drawn := gene.sample(rng)) == now:
        pass
    return {**genome, gene.path: drawn}


def subtree(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """Everything at and below a random place is drawn again: a number, a mixer, a layer, the whole body."""
    path = _any_of(list(genome), rng)
    if path is None:
        return None
    ends = [place for place, letter in enumerate(path) if letter in ".["]
    root = path[:rng.choice([*ends, len(path)])]
    return {p: d for p, d in genome.items() if not (p.startswith(root) and p[len(root):len(root) + 1] in ("", ".", "["))}


def resize(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """One number moves to the next smaller or larger option; a continuous one by about a tenth of its range."""
    gene = _any_of([g for g in _active(space, genome) if g.is_open and (g.numbers or g.options is None)], rng)
    if gene is None:
        return None
    return {**genome, gene.path: rng.choice(adjacent(gene, genome[gene.path], rng.uniform(0.05, 0.15)))}


def insert_layer(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """A layer more, anywhere in a repeat: a copy of the one before it, or drawn."""
    node = _repeat_where(space, genome, rng, lambda n, count: count + 1 in n.counts())
    if node is None:
        return None
    order: list[int | None] = list(range(count_of(node, genome)))
    place = rng.randrange(len(order) + 1)
    order.insert(place, order[place - 1] if order and rng.random() < 0.5 else None)
    return arranged(node, genome, order)


def remove_layer(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """A layer less, anywhere in a repeat."""
    node = _repeat_where(space, genome, rng, lambda n, count: count - 1 in n.counts())
    if node is None:
        return None
    order = list(range(count_of(node, genome)))
    order.pop(rng.randrange(len(order)))
    return arranged(node, genome, order)


def swap_layers(space: Space, genome: Genome, rng: random.Random) -> Decisions | None:
    """Two layers of a repeat change places."""
    node = _repeat_where(space, genome, rng, lambda n, count: count > 1)
    if node is None:
        return None
    order = list(range(count_of(node, genome)))
    i, j = rng.sample(order, 2)
    order[i], order[j] = j, i
    return arranged(node, genome, order)


MUTATIONS: dict[Mutation, float] = {one_gene: 4, resize: 2, subtree: 1, insert_layer: 1, remove_layer: 1, swap_layers: 1}


def mutate(space: Space, genome: Genome, rng: random.Random, kinds: Mapping[Mutation, float] = MUTATIONS) -> Genome:
    """Another genome near `genome`, by one mutation drawn with its weight among `kinds`.

    Where a hundred mutations give nothing that is new and allowed, a random genome.
    """
    functions, weights = list(kinds), list(kinds.values())
    for _ in range(TRIES):
        known = rng.choices(functions, weights)[0](space, genome, rng)
        if known is None:
            continue
        child = space.canonical(space._fill(known, rng))
        if child != genome and not space.violated(child):
            return child
    return space.sample_genome(rng)


def _any_of(items: Sequence[T], rng: random.Random) -> T | None:
    return rng.choice(items) if items else None


def _active(space: Space, genome: Genome) -> list[Gene]:
    return [space._gene_by_path[path] for path in genome]


def _repeat_where(space: Space, genome: Genome, rng: random.Random,
                  applies: Callable[[RepeatNode, int], bool]) -> RepeatNode | None:
    repeats = space.outline.active_repeats(genome)
    return _any_of([node for node in repeats if applies(node, count_of(node, genome))], rng)


def neighbours(space: Space, genome: Genome) -> Iterator[Genome]:
    """Every canonical genome one edit away, each once, in a fixed order.

    An edit changes one decision to an option near it (see `near_options`), or inserts, removes or swaps layers of a repeat;
    an inserted layer is a copy of the one before it or new. New decisions stand at their first option; where that would
    leave no trace, at the nearest options that do.
    """
    seen = {genome}
    for known in _edits(space, genome):
        for near in _forms(space, known):
            if near not in seen:
                seen.add(near)
                if not space.violated(near):
                    yield near


def _edits(space: Space, genome: Genome) -> Iterator[Decisions]:
    for gene in _active(space, genome):
        for option in near_options(gene, genome[gene.path]):
            yield {**genome, gene.path: option}
    for node in space.outline.active_repeats(genome):
        for order in _layer_orders(list(range(count_of(node, genome))), node.counts()):
            yield arranged(node, genome, order)


def _layer_orders(layers: list[int], counts: Sequence[int]) -> Iterator[list[int | None]]:
    for i, first in enumerate(layers):
        for second in layers[i + 1:]:
            yield [second if k == first else first if k == second else k for k in layers]
        if len(layers) - 1 in counts:
            yield [k for k in layers if k != first]
    if len(layers) + 1 in counts:
        for place in range(len(layers) + 1):
            for added in dict.fromkeys((None, *layers[max(place - 1, 0):place])):
                yield [*layers[:place], added, *layers[place:]]


def _forms(space: Space, known: Decisions) -> Iterator[Genome]:
    """The canonical genomes of incomplete decisions: with first options, and the first that keeps all it decides."""
    plain = space._first(known)
    canonical = space.canonical(plain)
    yield canonical
    if canonical == plain:
        return
    tried, front = 0, [plain]
    while front and tried < MAX_FORMS:
        deeper = []
        for base, path, option in ((b, p, o) for b in front for p in b if p not in known
                                   for o in _others(space, p, b[p])):
            form = space._first({**base, path: option})
            tried += 1
            canonical = space.canonical(form)
            if canonical == form:
                yield canonical
                return
            if tried >= MAX_FORMS:
                return
            deeper.append(form)
        front = deeper


def _others(space: Space, path: str, now: Decision) -> Sequence[Decision]:
    gene = space._gene_by_path[path]
    return near_options(gene, now) if gene.is_open else ()
