"""The largest network first, then subnets learn from it, or all from a given teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from .base import TrainingStrategy, Visit, check_count, check_share
from .draw import draw, largest, largest_size, sibling_genes

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.space import Space

__all__ = ["TwoStage"]


@dataclass(frozen=True)
class TwoStage(TrainingStrategy):
    """First the largest network, then random subnets learning from a fixed teacher (LightHuBERT, Wang et al., 2022).

    With a `teacher`, the paper's setting, both stages distil from it. Without one the largest network learns the task
    in the first stage, and a copy of it, taken at its end, is the teacher of the second. The paper matches the hidden
    states of a speech model; here students match the teacher's logits. A module that is no supernet, given a teacher,
    learns from it for all steps. With sibling candidates the first stage also visits dealt siblings at their largest
    sizes.

    Args:
        teacher: a trained module with the task's inputs and logits; it is not changed.
        first: the share of the steps in the first stage.
        paths: random subnets per step of the second stage.
        hard: the weight of the task's own loss beside the divergence from the teacher.
    """

    teacher: nn.Module | None = None
    first: float = 0.3
    paths: int = 1
    hard: float = 0.0
    name: ClassVar[str] = "two_stage"

    def __post_init__(self) -> None:
        check_share("first", self.first)
        check_count("paths", self.paths)
        if self.teacher is None and not self.first:
            raise ValueError("a second stage without a given teacher learns from what the first has trained: got "
                             "first=0; give first=0.3, or a teacher")

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        if step < round(self.first * steps):
            yield self._visit(largest(space), self.teacher is not None)
            if sibling_genes(space):
                yield self._visit(draw(space, step, seed, largest_size), self.teacher is not None)
            return
        for turn in range(self.paths):
            yield self._visit(draw(space, step * self.paths + turn, seed), True)

    def fixed_teacher(self, space: Space | None, step: int, steps: int) -> Architecture | nn.Module | None:
        if self.teacher is not None or space is None:
            return self.teacher
        return largest(space) if step >= round(self.first * steps) else None

    def alone(self) -> Visit:
        return Visit(None) if self.teacher is None else Visit(None, "student", self.hard)

    def _visit(self, architecture: Architecture, is_student: bool) -> Visit:
        return Visit(architecture, "student", self.hard) if is_student else Visit(architecture)
