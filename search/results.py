"""A sweep as its journal tells it: what every view of it shows, and nothing that needs the space or a tensor.

Trackers, figures and reports read a `Results` and never the events themselves, so a change of the journal's
bodies is a change of this file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..registry import Registry
from . import pareto
from .front import Criterion, Front, is_feasible
from .journal import Event, Journal, Trial
from .surrogates import is_measured

__all__ = ["Results", "common_decisions", "fold_layers", "pages", "show", "shown_path"]

Page = Callable[["Results"], str]
#: HTML pages of a sweep by file name, each a function of its results. Named as text: dashboards know sweeps, not the
#: other way round. Others add theirs with `pages.register("mine.html", function)` or the entry points `bodyplan.pages`.
pages: Registry[Page] = Registry("page")
pages.register("pareto.html", "bodyplan.dashboards.report:pareto_page")
pages.register("hypervolume.html", "bodyplan.dashboards.report:hypervolume_page")
pages.register("report.html", "bodyplan.dashboards.report:report_page")

_TRIAL_KINDS = ("ask", "result", "tell", "probe", "measured")


@dataclass(frozen=True)
class Results:
    """The state of a sweep at the moment of reading; `read` again to see what was added since.

    `trials` are the search's own, `twin` those of the random search beside it, both in order of number.
    `events` are all but those of single trials, by kind, oldest first.
    """

    directory: Path
    definition: Mapping[str, Any]
    objectives: tuple[Criterion, ...]
    trials: tuple[Trial, ...]
    twin: tuple[Trial, ...]
    front: Front
    events: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, source: str | Path | Journal) -> Results:
        """The results in a sweep directory, or in a journal that is open. Raises BodyplanError without a
        journal."""
        if isinstance(source, Journal):
            return cls._of(source)
        with Journal.open(source) as journal:
            return cls._of(journal)

    @classmethod
    def _of(cls, journal: Journal) -> Results:
        events: dict[str, tuple[Event, ...]] = {}
        for event in journal.events():
            if event.kind not in _TRIAL_KINDS:
                events[event.kind] = (*events.get(event.kind, ()), event)
        front = Front.from_journal(journal)
        return cls(journal.directory, journal.definition, front.objectives, tuple(journal.trials("search")),
                   tuple(journal.trials("twin")), front, events)

    @property
    def name(self) -> str:
        return str(self.definition.get("name") or self.directory.name)

    @property
    def began(self) -> float | None:
        """When the sweep was first started, in seconds since the epoch."""
        return self.events["sweep"][0].time if "sweep" in self.events else None

    @property
    def goals(self) -> list[str]:
        return [objective.goal for objective in self.objectives]

    @property
    def complete(self) -> list[Trial]:
        """Trials that were evaluated, feasible or not."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def failed(self) -> list[Trial]:
        """Trials that were evaluated and have no values."""
        return [trial for trial in self.trials if trial.state == "failed" and not trial.is_screened]

    @property
    def screened(self) -> list[Trial]:
        """Candidates that a predictor left out, untried."""
        return [trial for trial in self.trials if trial.is_screened]

    @property
    def predictions(self) -> list[str]:
        """What a sweep's predictor did, a line for each measured objective; none without one."""
        if not self.definition.get("predictor"):
            return []
        return [_prediction(o, self.complete, len(self.screened)) for o in self.objectives if is_measured(o)]

    @property
    def baselines(self) -> list[Trial]:
        """Complete trials that were given to the sweep (`initial=`) rather than found by it."""
        return [trial for trial in self.complete if trial.initial]

    @cached_property
    def ranks(self) -> dict[int, int]:
        """Front rank of every complete trial by number: 1 is the front of the feasible.

        Candidates beyond a bound come after all that are within. One that misses an objective has no rank.
        """
        points = self.points(self.complete)
        broken = [self.violation(trial) for trial in self.complete]
        ranks = pareto.constrained_ranks(points, self.goals, broken)
        return {trial.number: int(rank) + 1 for trial, rank in zip(self.complete, ranks, strict=True) if rank >= 0}

    @property
    def on_front(self) -> set[int]:
        """Numbers of the trials on the front."""
        return {point.number for point in self.front}

    @property
    def knee(self) -> int | None:
        """Number of the front's knee, None while the front is empty."""
        return self.front.knee().number if len(self.front) else None

    def points(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        """Objective values, shape (trials, objectives); NaN where one is missing."""
        rows = [[_float(trial.values.get(o.name)) for o in self.objectives] for trial in trials]
        return np.asarray(rows, dtype=np.float64).reshape(len(trials), len(self.objectives))

    def violation(self, trial: Trial) -> float:
        """By how much a trial breaks its bounds in all, as a share of them."""
        return sum(o.violation(trial.values[o.name]) for o in self.objectives
                   if o.bound is not None and trial.values.get(o.name) is not None)

    def best_in(self, trials: Sequence[Trial], *columns: int) -> list[Trial]:
        """Feasible trials that no other of them dominates in the named objectives alone, in order of the
        first."""
        kept = [trial for trial in trials if is_feasible(trial, self.objectives)]
        points = self.points(kept)[:, list(columns)]
        chosen = pareto.nondominated(points, [self.goals[column] for column in columns])
        order = np.lexsort(points[chosen].T[::-1])
        picked = [trial for trial, keep in zip(kept, chosen, strict=True) if keep]
        return [picked[index] for index in order]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The body of the newest event of a kind, or None."""
        return self.events[kind][-1].body if kind in self.events else None

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of all events of a kind, oldest first."""
        return [event.body for event in self.events.get(kind, ())]

    def volumes(self, trials: Sequence[Trial]) -> list[float]:
        """The hypervolume after each complete trial, in the order they finished. Empty without a reference
        point.

        A candidate that adds nothing costs one comparison with the front, so long sweeps stay cheap.
        """
        if self.front.reference is None:
            return []
        done = sorted((t for t in trials if t.state == "complete"), key=lambda t: (t.finished or 0.0, t.number))
        feasible = [is_feasible(trial, self.objectives) for trial in done]
        return _running_volumes(self.points(done), feasible, self.goals, self.front.reference)

    @cached_property
    def gain(self) -> float | None:
        """How much larger the search's hypervolume is than its random twin's, as a share; None without a twin."""
        search, twin = self.volumes(self.trials), self.volumes(self.twin)
        return search[-1] / twin[-1] - 1 if search and twin and twin[-1] else None

    @property
    def corner(self) -> str:
        """The reference point of the hypervolume in words."""
        point = zip(self.objectives, self.front.reference or (), strict=False)
        return ", ".join(f"{objective.name} {show(value, objective.unit)}" for objective, value in point)

    def export_command(self, trial: Trial) -> str:
        """What to type to get this candidate as a folder."""
        return f"bodyplan export {shown_path(self.directory)} {trial.number} exported/{trial.number}"


def show(value: float | None, unit: str = "") -> str:
    """A number for people: four significant digits, thousands separated, a dash for None."""
    if value is None:
        return "–"
    is_whole = float(value).is_integer()
    text = f"{value:,.0f}" if is_whole or abs(value) >= 10_000 else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def fold_layers(labels: Mapping[str, str]) -> dict[str, str]:
    """Decisions with the layers of a repeat on one line, in order, runs counted; shallow decisions first.

    Example:
        >>> fold_layers({"body[0].mixer": "Hyena", "body[1].mixer": "Hyena", "body[2].mixer": "Mamba2", "width": "64"})
        {'width': '64', 'body.mixer': 'Hyena ×2 · Mamba2'}
    """
    folded: dict[str, list[str]] = {}
    for path, label in labels.items():
        folded.setdefault(re.sub(r"\[\d+\]", "", path), []).append(str(label))
    ordered = sorted(folded, key=lambda path: path.count("."))
    return {path: " · ".join(_counted(folded[path])) for path in ordered}


def common_decisions(trials: Sequence[Trial], most: int = 6) -> list[str]:
    """Decisions that all the trials make and not all alike, the shallowest first."""
    if not trials:
        return []
    shared = [path for path in trials[0].labels if all(path in trial.labels for trial in trials)]
    varying = [path for path in shared if len({trial.labels[path] for trial in trials}) > 1]
    return sorted(varying, key=lambda path: (path.count(".") + path.count("["), varying.index(path)))[:most]


def shown_path(path: Path) -> str:
    """A path as one would type it: relative when it lies under the working directory, quoted where needed."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path != here and path.is_relative_to(here) else path))


def _prediction(objective: Criterion, complete: Sequence[Trial], screened: int) -> str:
    name = objective.name
    predicted = sum(name in trial.predicted for trial in complete)
    tested = [(trial.values[name], trial.extra["guesses"][name]) for trial in complete
              if name not in trial.predicted and name in trial.extra.get("guesses", {})]
    line = (f"{objective.label}: {len(complete) - predicted} measured, {predicted} predicted and clear of the front"
            + (f", {screened} not tried for a bound they were predicted to break" if screened else ""))
    if not tested:
        return line
    held = sum(low <= value <= high for value, (_, low, high) in tested)
    error = float(np.median([abs(guess / value - 1) for value, (guess, _, _) in tested]))
    return line + f"; of {len(tested)} predictions put to the test {held} held in their intervals, median error {error:.1%}"


def _counted(labels: Sequence[str]) -> Iterator[str]:
    start = 0
    for stop in range(1, len(labels) + 1):
        if stop == len(labels) or labels[stop] != labels[start]:
            yield labels[start] if stop - start == 1 else f"{labels[start]} ×{stop - start}"
            start = stop


def _running_volumes(points: NDArray[np.float64], feasible: Sequence[bool], goals: Sequence[str],
                     reference: Sequence[float]) -> list[float]:
    signs = np.array([-1.0 if goal == "max" else 1.0 for goal in goals])
    front = np.empty((0, len(goals)))
    volumes: list[float] = []
    for point, counts in zip(points, feasible, strict=True):
        covered = bool(((front * signs) <= point * signs).all(axis=1).any())
        if counts and not covered:
            front = np.vstack([front, point])
            front = front[pareto.nondominated(front, goals)]
            volumes.append(pareto.hypervolume(front, goals, reference))
        else:
            volumes.append(volumes[-1] if volumes else 0.0)
    return volumes


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
