"""One face for all models: fit, predict with an interval, update, and what was noticed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ...registry import unknown
from .additive import Additive, Exact, additivity
from .boosting import Boosting
from .conformal import fewest, margin
from .drift import Drift, find_drift
from .gaussian import Belief, GaussianProcess
from .prices import priced
from .table import Floats, Samples, Table, as_table, check_values

__all__ = ["Model", "Prediction", "Predictor", "Report"]

EXACT_WIDTH = 1e-6      # of the value: what rounding may do to an exact sum
LEAST_REACH = 1e-5      # of the value: no interval of a model is narrower to a side; its rounding may do as much
RIVALS = ("gaussian", "gaussian linear", "boosting")


class Model(Protocol):
    """What `Predictor` calls, in this order: `fit` once, `out_of_fold` with a fold number per row, `predict` any time.

    `out_of_fold(folds, sessions)` predicts every training row without its fold; `sessions=False` as if the order of
    measuring of the row were not known.
    """

    def fit(self, table: Table, values: Floats) -> Any: ...

    def out_of_fold(self, folds: Any, sessions: bool = True) -> Belief: ...

    def predict(self, table: Table) -> Belief: ...


class Prediction(NamedTuple):
    """float64[N] each; `low` to `high` holds the value with the predictor's coverage."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Report:
    """What fitting showed.

    additive: the values are an exact sum over positions. error: the mean absolute error of predictions out of fold as a
    share of the value, order not known. noise: the typical rest out of fold, scaled median absolute deviation, as a
    share. drift: of the order of measuring; None where that is not known or too short. shares: what each model says in
    the mean.
    """

    samples: int
    additive: bool
    error: float
    noise: float
    drift: Drift | None
    shares: dict[str, float]

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items() if share)
        kind = "an exact sum over positions" if self.additive else shares
        drift = "order of measuring not known" if self.drift is None else str(self.drift)
        return f"{self.samples} samples; {kind}; error {self.error:.1%}, noise {self.noise:.1%}; {drift}"


class Predictor:
    """Predicts positive measurements, such as latencies, of what was not measured.

    Args:
        model: "auto" is a Gaussian process over logarithms, or a mixture with one over the values and boosting where
            cross-validation prefers that;
            "gaussian", "gaussian linear", "boosting", "additive", or an object like `Model` (over logarithms).
        coverage: of the intervals; they are conformal, scaled by how unsure the model is of a sample.
        folds: of the cross-validation. seed: draws them.

    Values that are an exact sum over positions are recognised whatever the model, and predicted as one. Where samples come
    with the order they were measured in, the machine's drift is kept apart from what the samples cost, and a sample
    predicted without one is predicted for a typical session.

    Where samples come with a base, such as a profile's sum over operators, what is learned is the factor between the two:
    fewer measurements are enough. Where they come with amounts, as architectures do, the base is a sum of prices learned
    from the same measurements (`Prices`).

    Example:
        >>> import numpy as np
        >>> size = np.linspace(1.0, 9.0, 40)
        >>> predictor = Predictor("gaussian").fit({"size": size}, 3.0 + size ** 2 / 10)
        >>> value, low, high = predictor.predict({"size": np.array([4.5])})
        >>> bool(abs(value[0] - 5.025) < 0.05)
        True
    """

    def __init__(self, model: Literal["auto", "gaussian", "gaussian linear", "boosting", "additive"] | Model = "auto",
                 coverage: float = 0.9, folds: int = 10, seed: int = 0):
        if not 0 < coverage < 1:
            raise ValueError(f"coverage lies between 0 and 1: got {coverage}")
        if folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds: got {folds}")
        self.makers = _makers(model)
        self.coverage, self.folds, self.seed = coverage, folds, seed

    def fit(self, samples: Samples, values: ArrayLike, order: ArrayLike | None = None, base: Any = None) -> Predictor:
        """Learn from samples, their values and, where known, the order of measuring and a base, as `as_table` takes them.

        Raises ValueError for too few samples for the coverage, values that are not finite, not positive or all the same.
        """
        table = as_table(samples, order, base)
        found = check_values(values, len(table), max(fewest(self.coverage), 5))
        if found.min() <= 0:
            raise ValueError(f"measurements must be above 0: got {found.min():g} at sample {int(found.argmin())}")
        self.table, self.values, self.prices = table, found, None
        self.exact: Exact | None = additivity(table, found)
        folds = np.random.default_rng(self.seed).permutation(len(found)) % min(self.folds, len(found))
        known = table
        if table.base is None and table.amounts is not None:
            self.prices, totals = priced(table, found, folds)
            known = table if self.prices is None else replace(table, base=totals)
        self.factors = found if known.base is None else found / known.base
        self.models = [(name, maker().fit(known, np.log(self.factors) if logs else self.factors), logs)
                       for name, (maker, logs) in self.makers.items()]
        self._weigh(folds)
        self._look()
        return self

    def _weigh(self, folds: Any) -> None:
        """Shares of the models, and the margins of the intervals with and without a known order."""
        self.rests: dict[bool, tuple[Floats, Floats]] = {}
        self.shares = np.ones(1)
        for sessions in (False, True):
            beliefs = [_as_log(model.out_of_fold(folds, sessions), logs) for _, model, logs in self.models]
            if not sessions and len(beliefs) > 1:
                self.shares = _best_shares(beliefs, np.log(self.factors))
            mean, spread = _mixed(beliefs, self.shares)
            self.rests[sessions] = np.log(self.factors) - mean, spread
            if self.table.order is None:
                self.rests[True] = self.rests[False]
                break
        self.margins = {key: margin(*rest, self.coverage) for key, rest in self.rests.items()}

    def _look(self) -> None:
        rest = self.rests[False][0]
        drift = None
        if self.table.order is not None and len(rest) >= 20:
            drift = find_drift(self.table.order, rest)
        names = [name for name, _, _ in self.models]
        noise = self.rests[True][0]
        typical = 1.4826 * float(np.median(np.abs(noise - np.median(noise))))
        self.report = Report(len(rest), self.exact is not None, float(np.abs(np.expm1(-rest)).mean()), typical, drift,
                             dict(zip(names, self.shares.tolist(), strict=True)))

    def predict(self, samples: Samples, order: ArrayLike | None = None, base: Any = None) -> Prediction:
        """Values with intervals. `order` (or the table's) is when each is measured; without it, in a typical session."""
        table = as_table(samples, order, base)
        if table.names != self.table.names:
            raise ValueError(f"samples need the columns that were fitted, {self.table.names}: got {table.names}")
        for part in ("operators", "graphs", "amounts", "base"):
            if getattr(self.table, part) is not None and getattr(table, part) is None:
                raise ValueError(f"samples need {part}, as those that were fitted have them")
        if table.base is not None and self.table.base is None:
            raise ValueError("samples have a base and those that were fitted have none; fit with one, or leave it out")
        base = table.base if self.prices is None or table.amounts is None else self.prices.total(table.amounts)
        beliefs = [_as_log(model.predict(table), logs) for _, model, logs in self.models]
        mean, spread = _mixed(beliefs, self.shares)
        reach = np.maximum(self.margins[table.order is not None] * spread, LEAST_REACH)
        mean = mean if base is None else mean + np.log(base)
        value, low, high = np.exp(mean), np.exp(mean - reach), np.exp(mean + reach)
        if self.exact is not None:
            known = self.exact.predict(table)
            certain = np.isfinite(known)
            width = EXACT_WIDTH * np.abs(known)
            value = np.where(certain, known, value)
            low, high = np.where(certain, known - width, low), np.where(certain, known + width, high)
        return Prediction(value, low, high)

    def update(self, samples: Samples, values: ArrayLike, order: ArrayLike | None = None, base: Any = None) -> Predictor:
        """Fit again with more samples. Raises ValueError when they do not have the columns of those before."""
        more = as_table(samples, order, base)
        new = check_values(np.append(np.asarray(values, dtype=np.float64), 0.0), len(more) + 1)[:-1]
        return self.fit(self.table.then(more), np.append(self.values, new))


def _makers(model: Any) -> dict[str, tuple[Callable[[], Model], bool]]:
    """By name: what makes the model, and whether it sees logarithms."""
    known: dict[str, tuple[Callable[[], Model], bool]] = {
        "gaussian": (GaussianProcess, True), "gaussian linear": (GaussianProcess, False), "boosting": (Boosting, True),
        "additive": (Additive, True)}
    if not isinstance(model, str):
        if not all(hasattr(model, name) for name in ("fit", "predict", "out_of_fold")):
            raise TypeError(f"a model has fit, predict and out_of_fold: got {model!r}")
        return {type(model).__name__: (lambda: model, True)}
    if model == "auto":
        return {name: known[name] for name in RIVALS}
    if model not in known:
        raise ValueError(unknown("predictor", model, ["auto", *known]))
    return {model: known[model]}


def _as_log(belief: Belief, logs: bool) -> Belief:
    """A belief over values as one over their logarithms; values are held above a hundredth of their median."""
    if logs:
        return belief
    mean = np.maximum(belief.mean, 0.01 * float(np.median(np.abs(belief.mean))) + 1e-300)
    return Belief(np.log(mean), belief.spread / mean)


def _mixed(beliefs: list[Belief], shares: Floats) -> tuple[Floats, Floats]:
    """Mean and spread of the models together; of spreads that say nothing (all 1) only where there are no others."""
    mean = sum((share * belief.mean for share, belief in zip(shares, beliefs, strict=True)), np.zeros(len(beliefs[0].mean)))
    telling = [belief.spread for belief in beliefs if not (belief.spread == 1).all()]
    return mean, np.mean(telling, axis=0) if telling else np.ones(len(mean))


def _best_shares(beliefs: list[Belief], logs: Floats) -> Floats:
    """Shares on a grid of tenths with the least mean absolute error out of fold.

    The first model alone, unless the best shares beat it by more than the difference's standard error: with few samples,
    shares that were fitted to them cost more than they bring.
    """
    from itertools import product

    means = np.stack([belief.mean for belief in beliefs])
    grid = [np.array(s) / 10 for s in product(range(11), repeat=len(beliefs)) if sum(s) == 10]
    errors = np.stack([np.abs(shares @ means - logs) for shares in grid])
    first = np.abs(means[0] - logs)
    best = int(np.argmin(errors.mean(axis=1)))
    gain = first - errors[best]
    if gain.mean() <= gain.std() / len(gain) ** 0.5:
        return np.asarray([1.0, *[0.0] * (len(beliefs) - 1)])
    return np.asarray(grid[best], dtype=np.float64)
