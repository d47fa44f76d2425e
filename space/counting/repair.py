"""Bringing a genome within constraints that reject nearly everything: local search on how far they are broken.

Moves are the mutations of the space; they keep the rules over decisions. A move that leaves the genome nearer, or as near,
is taken (min-conflicts: Minton et al., 1992); where none helps for long, every single decision is tried, then another start.
What is found first lies near the boundary, so some more moves are made inside before it is handed out. That spreads
repaired genomes; it does not make them uniform.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..genome import Decision, Genome
from ..variation.variation import MUTATIONS

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["Distance", "repaired"]

Distance = Callable[[Genome], float]

STARTS = 8
PATIENCE = 60                # moves without getting nearer
INSIDE = 8                   # moves made after the constraints hold
MAX_OPTIONS = 64             # of one decision, when every single one is tried


def repaired(space: Space, start: Genome, distance: Distance, rng: random.Random,
             starts: int = STARTS) -> tuple[Genome | None, Genome]:
    """A genome at distance 0, or None; and the nearest that was found."""
    nearest, least = start, distance(start)
    for _ in range(starts):
        genome, off = _approach(space, start, distance, rng)
        if off < least:
            nearest, least = genome, off
        if not off:
            return _wander(space, genome, distance, rng), genome
        start = space.canonical(space._fill({}, rng))
    return None, nearest


def _approach(space: Space, genome: Genome, distance: Distance, rng: random.Random) -> tuple[Genome, float]:
    off, idle = distance(genome), 0
    while off:
        near = _moved(space, genome, rng)
        reached = distance(near)
        idle = 0 if reached < off else idle + 1
        if reached <= off:
            genome, off = near, reached
        if idle > PATIENCE:
            better = next(((n, d) for n in _around(space, genome, rng) if (d := distance(n)) < off), None)
            if better is None:
                break
            (genome, off), idle = better, 0
    return genome, off


def _wander(space: Space, genome: Genome, distance: Distance, rng: random.Random) -> Genome:
    for _ in range(INSIDE):
        near = _moved(space, genome, rng)
        if near != genome and not distance(near):
            genome = near
    return genome


def _moved(space: Space, genome: Genome, rng: random.Random) -> Genome:
    """One mutation, the rest of the genome as far as the rules over decisions allow."""
    known = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))[0](space, genome, rng)
    return genome if known is None else space.canonical(space._fill(known, rng))


def _some(options: Sequence[Decision], rng: random.Random) -> Sequence[Decision]:
    return options if len(options) <= MAX_OPTIONS else rng.sample(options, MAX_OPTIONS)


def _around(space: Space, genome: Genome, rng: random.Random) -> Iterator[Genome]:
    """Every genome that differs in one decision, in random order; of a decision with very many options, some."""
    changes = [(gene.path, option) for gene in space.genes if gene.path in genome
               for option in _some(gene.options or (gene.low, gene.high), rng) if option != genome[gene.path]]
    rng.shuffle(changes)
    for path, option in changes:
        yield space.canonical(space._fill({**genome, path: option}, rng))
