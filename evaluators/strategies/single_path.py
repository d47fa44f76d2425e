"""One random subnet per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TrainingStrategy, Visit
from .draw import draw

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["SinglePath"]


@dataclass(frozen=True)
class SinglePath(TrainingStrategy):
    """One random subnet per step, learning the task (SPOS, Guo et al., 2020), siblings dealt fairly."""

    name: ClassVar[str] = "single_path"

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        yield Visit(draw(space, step, seed))
