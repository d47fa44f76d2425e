"""Pareto local search (Paquete, Chiarandini and Stuetzle 2004); for one objective the hill climbing of White
et al. 2021.

White, Nolen and Savani ("Exploring the loss landscape in neural architecture search", 2021) find plain local
search hard to beat where evaluations carry little noise, as with a trained supernet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...space.genome import Genome
from ..pareto import constrained_ranks
from .base import Told, goals, values_matrix
from .novelty import Novelty

if TYPE_CHECKING:
    from ...evaluators.objectives import Objective
    from ...space.space import Space

__all__ = ["LocalSearch"]


@dataclass
class LocalSearch:
    """Proposes unseen neighbours of archive members, each member's in random order, members in turn by
    chance.

    Begins with `starts` random candidates. The archive holds what nothing else constraint-dominates; once
    every neighbour of every member was proposed, it restarts from random candidates.
    """

    starts: int = 8
    name: ClassVar[str] = "local_search"

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"starts must be at least 1: got {self.starts}")

    def start(self, space: Space, objectives: Sequence[Objective], seed: int) -> None:
        self._space, self._objectives, self._rng = space, tuple(objectives), random.Random(seed)
        self._novelty = Novelty(space)
        self._archive: list[Told] = []
        self._untried: dict[str, list[Genome]] = {}
        self._proposed = 0

    def ask(self, n: int) -> list[Genome]:
        asked = (self._next() for _ in range(n))
        return [genome for genome in asked if genome is not None]

    def _next(self) -> Genome | None:
        self._proposed += 1
        open_members = [told.genome for told in self._archive if self._neighbours(told.genome)]
        while self._proposed > self.starts and open_members:
            member = self._rng.choice(open_members)
            neighbours = self._neighbours(member)
            found = self._novelty.take(neighbours.pop, attempts=len(neighbours))
            if found is not None:
                return found
            open_members.remove(member)
        return self._novelty.sample(self._rng)

    def _neighbours(self, genome: Genome) -> list[Genome]:
        if genome.key not in self._untried:
            self._untried[genome.key] = list(self._space.neighbours(genome))
            self._rng.shuffle(self._untried[genome.key])
        return self._untried[genome.key]

    def tell(self, evaluations: Sequence[Told]) -> None:
        for told in evaluations:
            self._novelty.add(told.genome)
            if told.values is not None and all(told.genome != member.genome for member in self._archive):
                self._archive.append(told)
        if self._archive:
            points = np.array(values_matrix([member.values or {} for member in self._archive], self._objectives))
            rank = constrained_ranks(points, goals(self._objectives), [m.violation for m in self._archive])
            self._archive = [member for member, level in zip(self._archive, rank, strict=True) if level == 0]
