"""The sandwich with the best or the worst of several random subnets: attention for one end of the front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from .base import TrainingStrategy, Visit, check_count
from .draw import draw, largest_size, smallest_size

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.genome import Genome
    from ...space.space import Space

__all__ = ["Attentive"]

TRIES = 20
RIDGE = 1.0


@dataclass(frozen=True)
class Attentive(TrainingStrategy):
    """Among random subnets of about equal cost, train the one nearest to the front (AttentiveNAS, Wang et al., 2021).

    As in the sandwich, a large subnet is the teacher and a small one a student; the random students are chosen.
    `pick="best"` is the paper's BestUp, which improves the front; `pick="worst"` is WorstUp, which lifts the
    subnets that are behind. A first random subnet sets the cost, so costs follow the space's own distribution; its
    rivals lie within `tolerance` of it. Which one is best is told by the loss on the step's own batch (the paper's
    mini-batch estimator, one forward pass per rival), or, with a `record`, by a ridge regression on it: then a step
    costs what a sandwich costs.

    Args:
        rivals: how many subnets compete for a visit (the paper takes 3 for BestUp).
        random: how many visits are chosen so.
        tolerance: how far the multiply-adds of rivals may differ, as a share.
        record: (genome, score) pairs measured earlier, such as the trials of a sweep; lower scores are better. It
            is a snapshot: what it says does not change while the supernet trains.
        distill: students learn from the large subnet of the step.
    """

    rivals: int = 3
    pick: Literal["best", "worst"] = "best"
    random: int = 1
    tolerance: float = 0.1
    record: tuple[tuple[Genome, float], ...] = ()
    distill: bool = True
    name: ClassVar[str] = "attentive"

    def __post_init__(self) -> None:
        check_count("rivals", self.rivals, least=2)
        check_count("random", self.random)
        if self.pick not in ("best", "worst"):
            raise ValueError(f"attentive training picks the 'best' or the 'worst' rival: got {self.pick!r}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance of attentive training is a positive share: got {self.tolerance!r}")
        object.__setattr__(self, "record", tuple((genome, float(score)) for genome, score in self.record))

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        student: Literal["student", "task"] = "student" if self.distill else "task"
        yield Visit(draw(space, step, seed, largest_size), "teacher" if self.distill else "task")
        yield Visit(draw(space, step, seed, smallest_size), student)
        for number in range(self.random):
            rivals = self._rivals(space, step, seed, number)
            if self.record:
                yield Visit(self._picked(space, rivals), student)
            else:
                yield Visit(rivals[0], student, rivals=rivals, pick=self.pick)

    def _rivals(self, space: Space, step: int, seed: int, number: int) -> tuple[Architecture, ...]:
        """A random subnet, and others of its cost; the nearest in cost where none is near enough."""
        draws = (draw(space, step, seed, deal=1 + number * (TRIES * self.rivals + 1) + i)
                 for i in range(TRIES * self.rivals + 1))
        first = next(draws)
        cost = first.cost().macs
        found, others = [first], list[tuple[float, int, "Architecture"]]()
        for other in draws:
            gap = abs(other.cost().macs / cost - 1)
            if gap <= self.tolerance:
                found.append(other)
            else:
                others.append((gap, len(others), other))
            if len(found) == self.rivals or len(found) + len(others) > TRIES:
                break
        found += [other for _, _, other in sorted(others)[:self.rivals - len(found)]]
        return tuple(found)

    def _picked(self, space: Space, rivals: Sequence[Architecture]) -> Architecture:
        predict = _fitted(space, self.record)
        sign = 1 if self.pick == "best" else -1
        return min(rivals, key=lambda rival: sign * predict(rival.genome))


@lru_cache(maxsize=8)
def _fitted(space: Space, record: tuple[tuple[Genome, float], ...]) -> Callable[[Genome], float]:
    """A linear model of the recorded scores on the encoded genomes, by ridge regression."""
    features = np.stack([space.encode(genome) for genome, _ in record])
    scores = np.array([score for _, score in record])
    centre, mean = features.mean(0), scores.mean()
    moved = features - centre
    weights = np.linalg.solve(moved.T @ moved + RIDGE * np.eye(moved.shape[1]), moved.T @ (scores - mean))
    return lambda genome: float((space.encode(genome) - centre) @ weights + mean)
