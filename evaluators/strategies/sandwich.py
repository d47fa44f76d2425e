"""Largest, smallest and random subnets, with in-place distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TrainingStrategy, Visit, check_count
from .draw import draw, largest_size, smallest_size

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["Sandwich"]


@dataclass(frozen=True)
class Sandwich(TrainingStrategy):
    """A large subnet learns the task, a small and some random ones learn from it (BigNAS, Yu et al., 2020).

    A space with sibling candidates has no single largest subnet. Each step deals one assignment of siblings; at its
    largest sizes it is the teacher, at its smallest sizes the first student. Every random student has an assignment
    and sizes of its own, so a step with one of them visits two of the siblings at most places.

    Args:
        random: how many random students.
        distill: students learn the teacher's logits of the same step (in-place distillation); without it all learn
            the task (the sandwich rule of universally slimmable networks, Yu and Huang, 2019).
    """

    random: int = 1
    distill: bool = True
    name: ClassVar[str] = "sandwich"

    def __post_init__(self) -> None:
        check_count("random", self.random, least=0)

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        yield Visit(draw(space, step, seed, largest_size), "teacher" if self.distill else "task")
        student = "student" if self.distill else "task"
        yield Visit(draw(space, step, seed, smallest_size), student)                       # type: ignore[arg-type]
        for number in range(self.random):
            yield Visit(draw(space, step, seed, deal=number + 1), student)                 # type: ignore[arg-type]
