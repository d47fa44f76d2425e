"""The front of a sweep: its nondominated feasible candidates, and how to pick one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BodyplanError
from .journal import Journal, Trial
from .pareto import hypervolume, nondominated

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from ..space.architecture import Architecture

Floats = NDArray[np.float64]

__all__ = ["Criterion", "Front", "Origin", "Point", "is_feasible"]


@dataclass(frozen=True)
class Criterion:
    """What a front needs of an objective, as the journal keeps it: everything but the function."""

    name: str
    goal: Literal["min", "max"] = "min"
    unit: str = ""
    bound: float | None = None
    reference: float | None = None
    device: str | None = None
    needs: str = "architecture"

    @classmethod
    def of(cls, objective: Any) -> Criterion:
        """From an `Objective`, a journal's JSON, or another criterion."""
        stated = objective if isinstance(objective, Mapping) else {
            f.name: getattr(objective, f.name) for f in fields(cls) if hasattr(objective, f.name)}
        return cls(**{f.name: stated[f.name] for f in fields(cls) if f.name in stated})

    def violation(self, value: float) -> float:
        """By how much `value` breaks the bound, as a share of it; 0 without a bound or when it holds."""
        if self.bound is None:
            return 0.0
        excess = value - self.bound if self.goal == "min" else self.bound - value
        return max(0.0, excess) / (abs(self.bound) or 1.0)

    @property
    def label(self) -> str:
        """Name with unit and device, as a column or an axis is headed."""
        unit = " ".join(part for part in (self.unit, f"on {self.device}" if self.device else "") if part)
        return f"{self.name} ({unit})" if unit else self.name


class Origin(Protocol):
    """Where the points of a front come from; makes their architectures and modules again."""

    def architecture(self, trial: Trial) -> Architecture: ...

    def module(self, trial: Trial, weights: Literal["judged", "standalone"] = "judged") -> nn.Module: ...


@dataclass(frozen=True)
class Point(Trial):
    """A trial on the front. `test` holds its values on the test split, `standalone` those after training
    alone."""

    test: Mapping[str, float] = field(default_factory=dict)
    standalone: Mapping[str, float] = field(default_factory=dict)
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, trial: Trial, **more: Any) -> Point:
        return cls(**{f.name: getattr(trial, f.name) for f in fields(Trial)}, **more)

    @cached_property
    def architecture(self) -> Architecture:
        """The candidate as an architecture of the sweep's space."""
        return self._origin().architecture(self)

    def module(self, weights: Literal["judged", "standalone"] = "judged") -> nn.Module:
        """The candidate as a plain module in evaluation mode.

        "judged" gives the weights the sweep judged it by: extracted from the supernet, or, where candidates
        are trained alone, trained again from the trial's seed (the same weights on the same machine, and as
        long). Without training, the initialisation by that seed. "standalone" gives those of the retraining
        at the end of a supernet sweep. Raises BodyplanError when the weights are not in the sweep's
        directory.
        """
        return self._origin().module(self, weights)

    def _origin(self) -> Origin:
        if self.origin is None:
            raise BodyplanError(f"trial {self.number} was read from the journal alone, which knows decisions but no "
                                "space; get the front from Sweep(...).run(resume=True) to build it")
        return self.origin


class Front:
    """The nondominated feasible candidates among `candidates`, ordered by the first objective, best first.

    Candidates that failed, run still, miss an objective, hold NaN or break a bound are left out. Of
    candidates equal in every objective all stay. A front may be empty: `points` is then (), the hypervolume 0
    and `knee` raises.

    Args:
        candidates: trials, or the points of another front.
        objectives: `Objective`s or their JSON from a journal.
        reference: the reference point of the hypervolume, one number per objective, or None.
    """

    def __init__(self, candidates: Iterable[Trial], objectives: Sequence[Any],
                 reference: Sequence[float] | None = None):
        self.objectives = tuple(Criterion.of(objective) for objective in objectives)
        self.reference = None if reference is None else tuple(reference)
        self.goals = [objective.goal for objective in self.objectives]
        self.candidates: tuple[Point, ...] = tuple(_as_point(trial) for trial in candidates)
        kept = [point for point in self.candidates if is_feasible(point, self.objectives)]
        best = nondominated(self._matrix(kept), self.goals)
        points = [point for point, on_front in zip(kept, best, strict=True) if on_front]
        self.points: tuple[Point, ...] = tuple(sorted(points, key=self._place))

    @classmethod
    def from_journal(cls, journal: Journal, origin: Origin | None = None, stream: str = "search") -> Front:
        """The front of one stream of a journal, with the test and standalone values it holds."""
        reference = journal.last("reference")
        steps = journal.definition.get("steps")
        measured = {kind: {event.body["number"]: event.body["values"] or {} for event in journal.events(kind)
                           if _is_of_the_sweep(event.body, steps)} for kind in ("test", "standalone")}
        points = [Point.of(trial, test=measured["test"].get(trial.number, {}),
                           standalone=measured["standalone"].get(trial.number, {}), origin=origin)
                  for trial in journal.trials(stream)]
        return cls(points, journal.definition["objectives"], reference.body["point"] if reference else None)

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @property
    def values(self) -> Floats:
        """Objective values, shape (points, objectives)."""
        return self._matrix(self.points)

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Dominated volume up to `reference`, or the sweep's own reference point. 0.0 for an empty front."""
        corner = self.reference if reference is None else reference
        if corner is None:
            raise ValueError("a hypervolume needs a reference point: this front has none; give one number per "
                             f"objective ({', '.join(o.name for o in self.objectives)})")
        if len(corner) != len(self.objectives):
            raise ValueError(f"a reference point has one number per objective: got {len(corner)} for "
                             f"{len(self.objectives)}")
        return hypervolume(self.values, self.goals, corner)

    def knee(self, method: Literal["bulge", "utility"] = "bulge") -> Point:
        """The point where giving up a little of one objective stops buying much of another.

        "bulge" takes the point farthest below the hyperplane through the extremes of the front, objectives
        scaled to 0..1 over the front (Das 1999, "On characterizing the knee of the Pareto curve"). "utility"
        takes the point that costs a user most to lose, averaged over linear preferences (expected marginal
        utility, Branke et al. 2004, "Finding knees in multi-objective optimization"). Equal points and ties
        go to the lower trial number; with one point there is nothing to choose. Raises BodyplanError for an
        empty front.
        """
        if not self.points:
            raise BodyplanError("an empty front has no knee: no candidate was complete and within its bounds; "
                                "look at the failures, or loosen the bounds")
        return self.best(1, method)[0]

    def best(self, count: int, method: Literal["bulge", "utility"] = "bulge") -> list[Point]:
        """The knee and the next points by the same measure, at most `count`; none of an empty front."""
        if method not in ("bulge", "utility"):
            raise ValueError(f"knee by 'bulge' or 'utility': got {method!r}")
        costs = self._scaled()
        merit = -costs.sum(axis=1) if method == "bulge" else _marginal_utility(costs)
        numbers = [point.number for point in self.points]
        return [self.points[index] for index in np.lexsort(np.array([numbers, -merit.round(12)]))[:count]]

    def to_frame(self) -> pandas.DataFrame:
        """One row per point: number, hash, each objective with its interval, test and standalone values,
        decisions."""
        import pandas

        return pandas.DataFrame([_row(point, self.objectives) for point in self.points])

    def _matrix(self, trials: Sequence[Trial]) -> Floats:
        rows = [[trial.values[objective.name] for objective in self.objectives] for trial in trials]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.objectives))

    def _place(self, point: Point) -> tuple[float, ...]:
        signed = [-point.values[o.name] if o.goal == "max" else point.values[o.name] for o in self.objectives]
        return (*signed, point.number)

    def _scaled(self) -> Floats:
        """Costs from 0 (best on the front) to 1 (worst); an objective in which all are equal is 0."""
        if not self.points:
            return self.values
        costs = self.values * [-1.0 if goal == "max" else 1.0 for goal in self.goals]
        span = np.ptp(costs, axis=0)
        scaled: Floats = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
        return scaled


def is_feasible(trial: Trial, objectives: Sequence[Criterion]) -> bool:
    """Complete, with a number for every objective, and within every bound."""
    if trial.state != "complete" or any(trial.values.get(o.name) is None for o in objectives):
        return False
    values = [trial.values[objective.name] for objective in objectives]
    return not any(np.isnan(values)) and all(o.violation(v) == 0 for o, v in zip(objectives, values, strict=True))


def _is_of_the_sweep(body: Mapping[str, Any], steps: int | None) -> bool:
    """Whether a result has the sweep's own training: measuring fidelity adds other lengths and seeds."""
    return not body.get("replicate") and (body.get("fidelity") or {}).get("steps", steps) == steps


def _as_point(trial: Trial) -> Point:
    return trial if isinstance(trial, Point) else Point.of(trial)


def _marginal_utility(costs: Floats) -> Floats:
    """Mean loss, over 4096 fixed linear preferences, of each point's absence to those who prefer it most.

    The extremes (best in one objective) always cost much to lose without being knees; they come last where there are
    other points.
    """
    merit = np.zeros(len(costs))
    if len(costs) < 2:
        return merit
    weights = np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=4096)
    utilities = weights @ costs.T
    order = np.argsort(utilities, axis=1, kind="stable")
    rows = np.arange(len(weights))
    np.add.at(merit, order[:, 0], utilities[rows, order[:, 1]] - utilities[rows, order[:, 0]])
    merit[np.argmin(costs, axis=0)] = -1.0
    return merit / len(weights)


def _row(point: Point, objectives: Sequence[Criterion]) -> dict[str, Any]:
    row: dict[str, Any] = {"number": point.number, "hash": point.short, "initial": point.initial}
    for objective in objectives:
        row[objective.name] = point.values[objective.name]
        if objective.name in point.intervals:
            row[f"{objective.name}_low"], row[f"{objective.name}_high"] = point.intervals[objective.name]
        for kind, values in (("test", point.test), ("standalone", point.standalone)):
            if objective.name in values:
                row[f"{kind}_{objective.name}"] = values[objective.name]
    return {**row, "seconds": point.seconds, **{f"decision {path}": label for path, label in point.labels.items()}}
