"""Predictors that learn what a sweep measures, so that it measures only where that decides something.

Every objective that is measured on a device gets a predictor. It is fitted once enough candidates were measured, and again
whenever their number has grown by half. From then on a candidate that is predicted, at the better end of the interval,
to break a bound is not tried; others go to their worker with the prediction and the front as it is, and are measured there
only if that leaves their place open. What lies on the front in the end is measured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluators.devices import on_threads
from ..space.genome import Genome
from .front import Criterion
from .pareto import nondominated

if TYPE_CHECKING:
    from ..evaluators.objectives import Objective
    from ..evaluators.predictors import Predictor
    from ..space.architecture import Architecture
    from ..space.space import Space
    from .journal import Journal

__all__ = ["Surrogates", "check_predictor", "described", "is_measured"]

FIRST = 20          # measured candidates before anything is predicted
GROWTH = 1.5        # of their number from one fit to the next
MOST = 300          # the latest ones that a fit looks at
STEP = 0.1          # by how much intervals widen for a miss, and narrow again: log of the factor, see `_heed`

Guess = list[float]     # value, low, high


def is_measured(objective: Any) -> bool:
    """Whether an objective is measured on a device, rather than computed or scored."""
    return objective.needs == "model" and objective.device is not None


def check_predictor(predictor: Any, objectives: Sequence[Objective]) -> Predictor | None:
    """The predictor of a sweep's measured objectives, from a name or itself; raises for anything else, and where nothing is
    measured."""
    if predictor is None:
        return None
    from ..evaluators.predictors import Predictor

    if not isinstance(predictor, (str, Predictor)):
        raise TypeError(f'predictor is a name such as "gaussian", a Predictor or None: got {predictor!r}')
    if not any(is_measured(objective) for objective in objectives):
        raise ValueError(f"a predictor is for objectives that are measured on a device: this sweep has "
                         f"{', '.join(o.name for o in objectives)}; add one such as bp.latency(), or leave predictor out")
    return Predictor(predictor) if isinstance(predictor, str) else predictor     # type: ignore[arg-type]


def described(predictor: Predictor | None) -> dict[str, Any] | None:
    """A predictor as the journal has it."""
    return None if predictor is None else {"models": list(predictor.makers), "coverage": predictor.coverage}


class Surrogates:
    """The predictors of one sweep, filled from its journal. `guesses`, `screened` and `task` are asked before a candidate is
    evaluated, `learn` is told what came of it.
    """

    def __init__(self, space: Space, objectives: Sequence[Objective], predictor: Predictor, journal: Journal):
        self.space, self.predictor = space, predictor
        self.objectives = tuple(Criterion.of(objective) for objective in objectives)
        self.kinds = {o.name: _conditions(o) for o in objectives if is_measured(o)}
        self.models: dict[str, Predictor] = {}
        self.scale = dict.fromkeys(self.kinds, 1.0)
        self.trouble: dict[str, str] = {}
        self._rows: dict[str, list[tuple[Genome, float]]] = {name: [] for name in self.kinds}
        self._due = dict.fromkeys(self.kinds, FIRST)
        self._found: list[tuple[dict[str, float], dict[str, Guess]]] = []
        for trial in journal.trials():
            if trial.state == "complete":
                self.learn(trial.genome, {"state": trial.state, "values": trial.values, "intervals": trial.intervals,
                                          "extra": trial.extra})

    def learn(self, genome: Genome, body: Mapping[str, Any]) -> None:
        """Take a result: what was measured in it teaches the predictors, all of it enters the front."""
        if body["state"] != "complete":
            return
        values, extra = dict(body["values"]), body.get("extra") or {}
        predicted = set(extra.get("predicted") or ())
        guesses = {name: [values[name], *body["intervals"][name]] for name in predicted}
        for name in self.kinds:
            if name not in predicted:
                self._rows[name].append((genome, values[name]))
                if name in (extra.get("guesses") or {}):
                    self._heed(name, values[name], extra["guesses"][name])
        self._enter(values, guesses)

    def _heed(self, name: str, value: float, guess: Sequence[float]) -> None:
        """Widen the intervals where measurements miss them more often than they say, and narrow them back.

        Candidates that a search proposes are not drawn as those that the predictor learned from, so its coverage is held by
        tracking the misses, as in Conformal PID Control for Time Series Prediction (Angelopoulos et al., 2023).
        """
        missed = not guess[1] <= value <= guess[2]
        allowed = 1 - self.predictor.coverage
        self.scale[name] = max(1.0, self.scale[name] * math.exp(STEP * (missed - allowed) / allowed ** 0.5))

    def _enter(self, values: dict[str, float], guesses: dict[str, Guess]) -> None:
        """Keep the front of what is known: no bound broken, dominated by nothing."""
        if any(values.get(o.name) is None or o.violation(values[o.name]) for o in self.objectives):
            return
        self._found.append((values, guesses))
        matrix = np.array([[one[0][o.name] for o in self.objectives] for one in self._found], dtype=np.float64)
        kept = nondominated(matrix, [o.goal for o in self.objectives])
        self._found = [one for one, stays in zip(self._found, kept, strict=True) if stays]

    def guesses(self, genome: Genome) -> dict[str, Guess]:
        """(value, low, high) of every measured objective; empty as long as one of them cannot be predicted."""
        found, architecture = {}, self.space.architecture(genome)
        with on_threads(1):                               # these matrices are small, and the workers need the cores
            for name in self.kinds:
                self._refit(name)
                if name not in self.models:
                    return {}
                value, low, high = (float(part[0]) for part in self.models[name].predict(self._table(name, [architecture])))
                factor = self.scale[name]
                found[name] = [value, value * (low / value) ** factor, value * (high / value) ** factor]
        return found

    def _refit(self, name: str) -> None:
        rows = self._rows[name]
        if len(rows) < self._due[name]:
            return
        self._due[name] = math.ceil(GROWTH * len(rows))
        genomes, values = zip(*rows[-MOST:], strict=True)
        model = copy.deepcopy(self.predictor)
        try:
            self.models[name] = model.fit(self._table(name, map(self.space.architecture, genomes)), values)
            self.trouble.pop(name, None)
        except (ValueError, RuntimeError) as error:       # constant or negative measurements, a matrix without an inverse
            self.trouble[name] = str(error)

    def _table(self, name: str, architectures: Iterable[Architecture]) -> Any:
        from ..evaluators.predictors import features

        return features(architectures, **self.kinds[name])

    def screened(self, guesses: Mapping[str, Sequence[float]]) -> str | None:
        """Why a candidate is not tried: which bound it breaks even at the better end; None where it may keep them all."""
        for objective in self.objectives:
            if objective.name in guesses:
                value, low, high = guesses[objective.name]
                if objective.violation(low if objective.goal == "min" else high) > 0:
                    return (f"not tried: {objective.label} is predicted to be {value:.4g} [{low:.4g}, {high:.4g}], beyond "
                            f"its bound of {objective.bound:g}")
        return None

    def task(self, guesses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """What a worker needs to decide whether to measure; no part of what a result is known by."""
        return {"surrogate": {"guesses": dict(guesses), "front": [list(one) for one in self._found]}} if guesses else {}


def _conditions(objective: Objective) -> dict[str, Any]:
    """The tokens and the phase that costs are counted for, where the objective says."""
    probe: Any = objective.evaluate
    found: dict[str, Any] = {}
    if (length := getattr(probe, "length", None)) is not None:
        found["length"] = length
    if getattr(probe, "phase", None) in ("prefill", "decode"):
        found["phase"] = probe.phase
    return found
