"""Drawing genomes nobody proposed yet, down to the last one of a small space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

from ...space.counting.counting import NotCountable
from ...space.genome import Genome

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["Novelty"]

_ENUMERABLE = 200_000  # spaces up to this size are walked through when sampling finds nothing new


class Novelty:
    """Remembers canonical genomes and draws new ones. Uses no randomness but the generator passed in."""

    def __init__(self, space: Space):
        self.space = space
        self._seen: set[str] = set()
        self._rest: Iterator[Genome] | None = None

    def __contains__(self, genome: Genome) -> bool:
        return genome.key in self._seen

    def add(self, genome: Genome) -> None:
        self._seen.add(genome.key)

    def take(self, draw: Callable[[], Genome], attempts: int) -> Genome | None:
        """The first new genome among `attempts` draws of canonical ones, remembered, or None."""
        for _ in range(attempts):
            genome = draw()
            if genome not in self:
                self.add(genome)
                return genome
        return None

    def sample(self, rng: Random, attempts: int = 100) -> Genome | None:
        """A new random genome; None when a space small enough to be walked through holds no more."""
        found = self.take(lambda: self.space.sample_genome(rng), attempts)
        return found if found is not None else self._next_of_the_rest()

    def _next_of_the_rest(self) -> Genome | None:
        if self._rest is None:
            self._rest = iter(self.space.enumerate()) if _is_enumerable(self.space) else iter(())
        for genome in self._rest:
            genome = self.space.canonical(genome)
            if genome not in self:
                self.add(genome)
                return genome
        return None


def _is_enumerable(space: Space) -> bool:
    try:
        return space.size() <= _ENUMERABLE
    except NotCountable:
        return False
