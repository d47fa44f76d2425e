"""Several random subnets per step, each on its part of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TrainingStrategy, Visit, check_count
from .draw import draw

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["MultiPath"]


@dataclass(frozen=True)
class MultiPath(TrainingStrategy):
    """Several random subnets in one step (multi-architectural sampling of ViT-ResNAS, Liao et al., 2021).

    The gradient of a step is that of several architectures at the price of one: each runs on its own part of the
    batch. The paper masks one large network per example; here each part runs through a subnet, which computes only
    what it keeps.

    Args:
        paths: how many subnets.
        split: give each a part of the batch; otherwise each runs on all of it, at `paths` times the price.
    """

    paths: int = 4
    split: bool = True
    name: ClassVar[str] = "multi_path"

    def __post_init__(self) -> None:
        check_count("paths", self.paths)

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        for turn in range(self.paths):
            part = (turn, self.paths) if self.split else None
            yield Visit(draw(space, step * self.paths + turn, seed), part=part)
