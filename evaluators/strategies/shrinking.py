"""The largest first, then one kind of size after the other opens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from ...space.compiled.spec import Gene
from ...space.genome import Decision
from .base import TrainingStrategy, Visit, check_count, check_share
from .draw import Kind, draw, kind_of, largest, largest_size, sibling_genes

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.space import Space

__all__ = ["ProgressiveShrinking"]

KINDS = ("operator", "depth", "width")


@dataclass(frozen=True)
class ProgressiveShrinking(TrainingStrategy):
    """Train the largest network, then let one kind of size after the other shrink (Once-for-all, Cai et al., 2020).

    The order is the paper's: first what an operator is made of (kernel, heads, window, state), then depth, then
    width. Within a phase a size first chooses between its two largest options, in the second half among all. Kinds
    of later phases stay at their largest. Students learn the task and from a copy of the largest network, taken
    when the phases begin. With sibling candidates, which share no weights, the first part also visits dealt
    siblings at their largest sizes, so that none of them starts untrained.

    Args:
        full: the share of the steps before the first phase; phases are equally long.
        phases: kinds of sizes in the order they open.
        paths: how many random subnets a step of each phase visits.
        distill: learn from the largest network besides the task; without it from the task alone.
    """

    full: float = 0.25
    phases: tuple[Kind, ...] = ("operator", "depth", "width")
    paths: tuple[int, ...] = (1, 2, 4)
    distill: bool = True
    name: ClassVar[str] = "progressive_shrinking"

    def __post_init__(self) -> None:
        check_share("full", self.full)
        if self.distill and not self.full:
            raise ValueError("progressive shrinking distils from the largest network after training it: full=0 leaves "
                             "it untrained; give full=0.25, or distill=False")
        if sorted(self.phases) != sorted(KINDS):
            raise ValueError(f"phases of progressive shrinking are {', '.join(KINDS)} in any order: got "
                             f"{self.phases!r}")
        if len(self.paths) != len(self.phases):
            raise ValueError(f"paths of progressive shrinking has a number per phase: got {self.paths!r} for "
                             f"{len(self.phases)} phases")
        for count in self.paths:
            check_count("paths", count)

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        phase, is_late = self._phase(step, steps)
        if phase is None:
            yield Visit(largest(space))
            if sibling_genes(space):
                yield Visit(draw(space, step, seed, largest_size))
            return
        opened = self.phases[:phase]

        def choose(gene: Gene, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
            kind = kind_of(gene)
            if kind in opened or (kind == self.phases[phase] and is_late):
                return gene.sample(rng)
            return rng.choice(ordered[-2:]) if kind == self.phases[phase] else ordered[-1]

        count = self.paths[phase]
        for turn in range(count):
            subnet = draw(space, step * count + turn, seed, choose)
            yield Visit(subnet, "student", hard=1.0) if self.distill else Visit(subnet)

    def fixed_teacher(self, space: Space | None, step: int, steps: int) -> Architecture | nn.Module | None:
        if space is None or not self.distill or self._phase(step, steps)[0] is None:
            return None
        return largest(space)

    def _phase(self, step: int, steps: int) -> tuple[int | None, bool]:
        """The number of the phase, None before the first, and whether its second half has begun."""
        start = round(self.full * steps)
        if step < start:
            return None, False
        done = (step - start) / max(1, steps - start) * len(self.phases)
        phase = min(math.floor(done), len(self.phases) - 1)
        return phase, done - phase >= 0.5
