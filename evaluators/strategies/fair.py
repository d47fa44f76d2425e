"""Every sibling once per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TrainingStrategy, Visit
from .draw import draw, sibling_genes

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["Fair"]


@dataclass(frozen=True)
class Fair(TrainingStrategy):
    """Strict fairness (FairNAS, Chu et al., 2019): as many subnets per step as the widest choice has siblings.

    Every sibling of that choice is visited once per step, those of narrower choices at least once.
    """

    name: ClassVar[str] = "fair"

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        rounds = max((len(gene.options or ()) for gene in sibling_genes(space)), default=1)
        for turn in range(rounds):
            yield Visit(draw(space, step * rounds + turn, seed))
