"""Sums over positions: exact where the table is one, ridge regression elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from .gaussian import Belief
from .table import Floats, Table, padded

__all__ = ["Additive", "additivity"]


class Additive:
    """A model for `Predictor`: a constant, a cost per operator and position, a slope per number; ridge regression.

    strength: of the ridge, in units of the numbers' variance; a small one gives an exact sum to rounding. pooled: adds how
    often each operator occurs, so that a position where one was never seen takes what it costs elsewhere.
    """

    def __init__(self, strength: float = 1.0, pooled: bool = True):
        if not strength > 0:
            raise ValueError(f"strength must be above 0: got {strength}; 1e-8 is next to none")
        self.strength, self.pooled = strength, pooled

    def fit(self, table: Table, values: Floats) -> Additive:
        operators = table.operators
        self.names = [] if operators is None else sorted(set(operators.ravel()) - {""})
        self.length = 0 if operators is None else operators.shape[1]
        self.middle, spread = table.values.mean(axis=0), table.values.std(axis=0)
        self.scale = np.where(spread > 0, spread, 1.0)
        x = self.columns(table)
        self.means, self.value = x.mean(axis=0), float(values.mean())
        self.x, self.y = x - self.means, values - self.value
        self.slopes = self._slopes(self.x, self.y)
        return self

    def _slopes(self, x: Floats, y: Floats) -> Floats:
        square = x.T @ x + self.strength * np.eye(x.shape[1])
        return np.asarray(np.linalg.solve(square, x.T @ y), dtype=np.float64)

    def columns(self, table: Table) -> Floats:
        """Design matrix float64[N, ...]: numbers, one-hot of each position, counts where pooled."""
        parts = [(table.values - self.middle) / self.scale]
        if self.names:
            assert table.operators is not None
            operators = padded(table.operators, max(self.length, table.operators.shape[1]))
            hot = np.stack([operators == name for name in self.names], axis=2).astype(np.float64)
            parts.append(hot[:, :self.length].reshape(len(table), -1))
            if self.pooled:
                parts.append(hot.sum(axis=1))
        return np.concatenate(parts, axis=1)

    def predict(self, table: Table) -> Belief:
        mean: Floats = self.value + (self.columns(table) - self.means) @ self.slopes
        return Belief(mean, np.ones(len(mean)))

    def out_of_fold(self, folds: Any, sessions: bool = True) -> Belief:
        mean = np.zeros(len(self.y))
        for fold in np.unique(folds):
            out, rest = folds == fold, folds != fold
            middle, value = self.x[rest].mean(axis=0), self.y[rest].mean()
            slopes = self._slopes(self.x[rest] - middle, self.y[rest] - value)
            mean[out] = value + (self.x[out] - middle) @ slopes
        return Belief(mean + self.value, np.ones(len(mean)))


class Exact:
    """The costs of a table that is an exact sum; made by `additivity`. `predict` says nothing (NaN) where it cannot know."""

    def __init__(self, model: Additive, table: Table, values: Floats):
        x = np.concatenate([np.ones((len(values), 1)), model.columns(table)], axis=1)
        self.model = model
        left, singular, right = np.linalg.svd(x, full_matrices=False)
        rank = int((singular > 1e-9 * singular[0]).sum())
        self.rank, self.rows = rank, right[:rank]
        self.slopes: Floats = (right[:rank].T / singular[:rank]) @ (left[:, :rank].T @ values)
        self.rest: Floats = values - x @ self.slopes

    def predict(self, table: Table) -> Floats:
        model = self.model
        x = np.concatenate([np.ones((len(table), 1)), model.columns(table)], axis=1)
        known = np.abs(x - (x @ self.rows.T) @ self.rows).max(axis=1) < 1e-7
        seen: Any = np.ones(len(table), dtype=bool)
        if table.operators is not None:
            seen = np.isin(table.operators, ["", *model.names]).all(axis=1)
            if table.operators.shape[1] > model.length:
                seen &= (table.operators[:, model.length:] == "").all(axis=1)
        return np.where(known & seen, x @ self.slopes, np.nan)


def additivity(table: Table, values: Floats, tolerance: float = 1e-5) -> Exact | None:
    """The exact sum over positions that the values are, or None.

    It is one when least squares leaves no rest above `tolerance` of the values' standard deviation although at least five
    samples more were measured than there are costs to find; with fewer nothing can be recognised.
    """
    if table.operators is None:
        return None
    model = Additive(pooled=False).fit(table.without_order(), values)
    found = Exact(model, table, values)
    if len(values) - found.rank < 5 or np.abs(found.rest).max() > tolerance * values.std():
        return None
    return found
