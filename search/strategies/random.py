"""Random search without repetition (Bergstra and Bengio 2012): the twin every search is measured against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...space.genome import Genome
from .base import Told
from .novelty import Novelty

if TYPE_CHECKING:
    from ...evaluators.objectives import Objective
    from ...space.space import Space

__all__ = ["Random"]


@dataclass
class Random:
    """Draws from the space's own sampling distribution and learns nothing, except not to repeat itself."""

    name: ClassVar[str] = "random"

    def start(self, space: Space, objectives: Sequence[Objective], seed: int) -> None:
        self._novelty = Novelty(space)
        self._rng = random.Random(seed)

    def ask(self, n: int) -> list[Genome]:
        drawn = (self._novelty.sample(self._rng) for _ in range(n))
        return [genome for genome in drawn if genome is not None]

    def tell(self, evaluations: Sequence[Told]) -> None:
        for told in evaluations:
            self._novelty.add(told.genome)
