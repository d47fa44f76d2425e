"""A Gaussian process over named numbers, operators at positions, graphs and measuring sessions.

Gaussian Processes for Machine Learning (Rasmussen and Williams, 2006), chapters 2 and 5; outliers by Student-t noise, as
weights found by expectation maximisation. Cost: cubic in the samples; above `searched` rows the parameters are looked for
on that many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kernels import Graphs, Numbers, Positions, Sessions, Term
from .posterior import climb, misfit
from .table import Floats, Table

__all__ = ["Belief", "GaussianProcess"]

CONSTANT = 25.0         # prior variance of the mean, in units of the values' variance
FREEDOM = 4.0           # degrees of freedom of the noise
REFITS = 5              # how often parameters are looked for again to know the errors on rows not seen
NOISE = (-1.5, 1.25)    # prior of the noise's log standard deviation, in units of the values'
OVER_BASE = (-0.3, 1.0)     # the same of what a base leaves over, which is noise above all


class Belief(NamedTuple):
    """Mean and standard deviation of each sample's value, noise included: float64[N] both."""

    mean: Floats
    spread: Floats


class GaussianProcess:
    """A model for `Predictor`: `fit(table, values)`, `predict(table)`, `out_of_fold(folds)`.

    terms: of `kernels.py`; by default one for every part that the table has. robust: Student-t noise, for latencies whose
    errors have heavy tails. searched: rows that the parameters are looked for on. Where the order of measuring is known
    in training and not when predicting, a typical session is taken, the median of those met.
    """

    def __init__(self, terms: Sequence[Term] | None = None, robust: bool = True, searched: int = 200, iterations: int = 30):
        self.given, self.robust, self.searched, self.iterations = terms, robust, searched, iterations

    def fit(self, table: Table, values: Floats) -> GaussianProcess:
        self.table = table
        self.terms = list(self.given) if self.given is not None else _terms(table)
        self.middle, self.scale = float(np.median(values)), float(values.std()) or 1.0
        self.values = torch.from_numpy((values - self.middle) / self.scale)
        priors = [term.fit(table) for term in self.terms] + [[NOISE if table.base is None else OVER_BASE]]
        self.cuts = list(np.cumsum([0, *map(len, priors)]))
        self.prior = torch.tensor([entry for prior in priors for entry in prior], dtype=torch.float64)
        self.parts = [term.read(table) for term in self.terms]
        self.parameters, self.weights = self._search(np.arange(len(table)), self.prior[:, 0], self.iterations, 3)
        self.inverse = torch.linalg.inv(self._noisy(self.parameters, self.parts, self.weights))
        self.solved = self.inverse @ self.values
        self.refits: dict[bytes, list[tuple[Any, Tensor, Tensor]]] = {}
        return self

    def _search(self, rows: Any, start: Tensor, iterations: int, turns: int) -> tuple[Tensor, Tensor]:
        """Parameters of the highest posterior for these rows, in turn with the weights of their noise."""
        some = rows
        if len(rows) > self.searched:
            some = np.sort(np.random.default_rng(0).choice(rows, self.searched, replace=False))
        parts, values = [_take(part, some) for part in self.parts], self.values[torch.from_numpy(some)]
        parameters, weights = start.clone(), torch.ones_like(values)
        for turn in range(turns if self.robust else 1):
            parameters = climb(lambda found, now=weights: self._loss(found, parts, values, now), parameters,
                               iterations if turn == 0 else iterations // 2)
            if self.robust:
                weights = self._weights(parameters, parts, values, weights)
        whole, values = [_take(part, rows) for part in self.parts], self.values[torch.from_numpy(rows)]
        return parameters, self._weights(parameters, whole, values) if self.robust else torch.ones_like(values)

    def _covariance(self, parameters: Tensor, left: list[Any], right: list[Any], sessions: bool = True) -> Tensor:
        total = torch.tensor(CONSTANT, dtype=torch.float64)
        for term, start, stop, a, b in zip(self.terms, self.cuts, self.cuts[1:], left, right, strict=False):
            if not isinstance(term, Sessions) or sessions:
                total = total + term.covariance(parameters[start:stop], a, b)
        return total

    def _noisy(self, parameters: Tensor, parts: list[Any], weights: Tensor) -> Tensor:
        return self._covariance(parameters, parts, parts) + torch.diag((2 * parameters[-1]).exp() * weights + 1e-8)

    def _loss(self, parameters: Tensor, parts: list[Any], values: Tensor, weights: Tensor) -> Tensor:
        deviation = (parameters - self.prior[:, 0]) / self.prior[:, 1]
        return misfit(self._noisy(parameters, parts, weights), values) + 0.5 * (deviation ** 2).sum()

    def _weights(self, parameters: Tensor, parts: list[Any], values: Tensor, weights: Tensor | None = None) -> Tensor:
        """The expected inverse precision of every sample's noise: 1 for the ordinary, large for outliers."""
        noise = float((2 * parameters[-1]).exp())
        now = torch.ones_like(values) if weights is None else weights
        for _ in range(4 if weights is None else 1):
            inverse = torch.linalg.inv(self._noisy(parameters, parts, now))
            own = noise * now
            error, left = own * (inverse @ values), (own - own ** 2 * inverse.diagonal()).clamp_min(0)
            now = (FREEDOM + (error ** 2 + left) / noise) / (FREEDOM + 1)
        return now

    def predict(self, table: Table) -> Belief:
        parts = [term.read(table) for term in self.terms]
        knows = not any(isinstance(term, Sessions) and part is None for term, part in zip(self.terms, parts, strict=True))
        cross = self._covariance(self.parameters, parts, self.parts, knows)
        variance = self._own(parts, len(table), knows) - ((cross @ self.inverse) * cross).sum(1)
        shift, extra = (0.0, 0.0) if knows else self._typical(self.parameters, self.solved, self.parts)
        return self._belief(cross @ self.solved + shift, variance + extra)

    def _own(self, parts: list[Any], rows: int, sessions: bool) -> Tensor:
        one_by_one = [self._covariance(self.parameters, here, here, sessions).diagonal()
                      for start in range(0, rows, 256) for here in [[_take(p, np.arange(start, min(start + 256, rows)))
                                                                     for p in parts]]]
        return torch.cat(one_by_one)

    def _typical(self, parameters: Tensor, solved: Tensor, parts: list[Any]) -> tuple[Tensor, Tensor]:
        """The median effect of the sessions met, and its mean square around that."""
        place = next(i for i, term in enumerate(self.terms) if isinstance(term, Sessions))
        own = parameters[self.cuts[place]:self.cuts[place + 1]]
        effects = self.terms[place].covariance(own, parts[place], parts[place]) @ solved
        return effects.median(), ((effects - effects.median()) ** 2).mean()

    def _belief(self, mean: Tensor, variance: Tensor) -> Belief:
        noise = (2 * self.parameters[-1]).exp()
        spread = (variance.clamp_min(0) + noise + 1e-8).sqrt()
        return Belief(self.middle + self.scale * mean.numpy(), self.scale * spread.numpy())

    def out_of_fold(self, folds: Any, sessions: bool = True) -> Belief:
        """What is predicted of each training row without its fold.

        Means are of parameters that were looked for again without it, in `REFITS` groups of folds: those of all rows know
        the row, its error would come out too small, and 90 % intervals from 30 rows held 78 to 86 % of new ones. Spreads are
        of the parameters that predict: only so is a margin in spreads one for `predict`.
        """
        sessions = sessions or not any(isinstance(term, Sessions) for term in self.terms)
        groups = folds % REFITS
        key = groups.tobytes()
        if key not in self.refits:
            self.refits = {key: [self._refit(groups == group) for group in np.unique(groups)]}
        mean, variance = self._without(folds, self.parameters, self.weights, sessions)
        for out, parameters, weights in self.refits[key]:
            mean[out] = self._without(np.where(out, folds, -1), parameters, weights, sessions)[0][out]
        return self._belief(mean, variance)

    def _refit(self, out: Any) -> tuple[Any, Tensor, Tensor]:
        rest, weights = np.flatnonzero(~out), self.weights.clone()
        parameters, weights[rest] = self._search(rest, self.parameters, self.iterations // 3, 2)
        return out, parameters, weights

    def _without(self, folds: Any, parameters: Tensor, weights: Tensor, sessions: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance of each row without its fold; of folds below 0 nothing is asked."""
        mean, variance = torch.zeros_like(self.values), torch.zeros_like(self.values)
        noisy = self._noisy(parameters, self.parts, weights)
        plain = self._covariance(parameters, self.parts, self.parts, sessions)
        for fold in np.unique(folds[folds >= 0]):
            out, rest = torch.from_numpy(np.flatnonzero(folds == fold)), torch.from_numpy(np.flatnonzero(folds != fold))
            inverse = torch.linalg.inv(noisy[rest][:, rest])
            solved, cross = inverse @ self.values[rest], plain[out][:, rest]
            mean[out] = cross @ solved
            variance[out] = plain.diagonal()[out] - ((cross @ inverse) * cross).sum(1)
            if not sessions:
                shift, extra = self._typical(parameters, solved, [_take(part, rest.numpy()) for part in self.parts])
                mean[out], variance[out] = mean[out] + shift, variance[out] + extra
        return mean, variance


def _terms(table: Table) -> list[Term]:
    terms: list[Term] = []
    if table.names and (table.values.std(axis=0) > 1e-9).any():
        terms.append(Numbers())
    if table.operators is not None:
        terms.append(Positions())
    if table.graphs is not None:
        terms.append(Graphs())
    if table.order is not None and np.ptp(table.order) > 0:
        terms.append(Sessions())
    return terms


def _take(part: Any, rows: Any) -> Any:
    """The rows of what a term has read."""
    if isinstance(part, list):
        return [_take(entry, rows) for entry in part]
    return None if part is None else part[torch.from_numpy(np.asarray(rows))]
