"""Deb, Pratap, Agarwal and Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II".

Here in its steady-state form (Durillo, Nebro, Luna and Alba 2009): one child at a time enters the population
and the worst of population and child leaves, so candidates can be asked for while others are still being
evaluated. The operators act on the genome tree of the space and not on a flat vector: crossover swaps whole
sub-decisions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...space.genome import Genome
from ..pareto import constrained_ranks, crowding
from .base import Told, goals, values_matrix
from .novelty import Novelty

if TYPE_CHECKING:
    from ...evaluators.objectives import Objective
    from ...space.space import Space

__all__ = ["Evolution"]


@dataclass
class Evolution:
    """NSGA-II on the genome.

    The first `population` candidates are random; from then on each is a child of two parents, each the better
    of two drawn at random (rank, then crowding), crossed with probability `crossover` and always mutated.
    Bounded objectives act through constraint domination: a feasible candidate beats an infeasible one, of two
    infeasible ones the one violating less wins. No genome is proposed twice; where mutation keeps finding
    known ones, a random one is taken.
    """

    population: int = 20
    crossover: float = 0.9
    name: ClassVar[str] = "evolution"

    def __post_init__(self) -> None:
        if self.population < 4:
            raise ValueError(f"population must be at least 4: got {self.population}")
        if not 0 <= self.crossover <= 1:
            raise ValueError(f"crossover is a probability between 0 and 1: got {self.crossover}")

    def start(self, space: Space, objectives: Sequence[Objective], seed: int) -> None:
        self._space, self._objectives, self._rng = space, tuple(objectives), random.Random(seed)
        self._novelty = Novelty(space)
        self._members: list[Told] = []
        self._order: list[int] = []   # place of each member, 0 the best: what a tournament compares
        self._proposed = 0

    def ask(self, n: int) -> list[Genome]:
        asked = (self._next() for _ in range(n))
        return [genome for genome in asked if genome is not None]

    def _next(self) -> Genome | None:
        self._proposed += 1
        if self._proposed <= self.population or len(self._members) < 2:
            return self._novelty.sample(self._rng)
        child = self._novelty.take(self._child, attempts=50)
        return child if child is not None else self._novelty.sample(self._rng)

    def _child(self) -> Genome:
        genome = self._parent()
        if self._rng.random() < self.crossover:
            genome = self._space.crossover(genome, self._parent(), self._rng)
        return self._space.mutate(genome, self._rng)

    def _parent(self) -> Genome:
        one, other = (self._rng.randrange(len(self._members)) for _ in range(2))
        winner = one if self._order[one] <= self._order[other] else other
        return self._members[winner].genome

    def tell(self, evaluations: Sequence[Told]) -> None:
        for told in evaluations:
            self._novelty.add(told.genome)
            if told.values is not None and all(told.genome != member.genome for member in self._members):
                self._members.append(told)
                self._survive()

    def _survive(self) -> None:
        """Order the members best first, equal ranks by crowding, and let the last go when there is one too
        many."""
        points = np.array(values_matrix([member.values or {} for member in self._members], self._objectives))
        rank = constrained_ranks(points, goals(self._objectives), [member.violation for member in self._members])
        lonely = np.zeros(len(points))
        for level in np.unique(rank):
            same = np.flatnonzero(rank == level)
            lonely[same] = crowding(points[same])
        best_first = np.lexsort((-lonely, rank))[: self.population]
        self._members = [self._members[index] for index in best_first]
        self._order = list(range(len(self._members)))
