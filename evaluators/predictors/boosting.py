"""Gradient boosting on numbers and on one-hot positions; scikit-learn is imported when it is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np

from .additive import Additive
from .gaussian import Belief
from .table import Floats, Table

__all__ = ["Boosting"]

MANY = 100      # samples; of more, a fifth can be spared: without a fifth of 50, 90 % intervals held 93 %, not 92


class Boosting:
    """A model for `Predictor`: boosted trees on values held within five spreads of their median.

    Greedy Function Approximation: A Gradient Boosting Machine (Friedman, 2001). Needs scikit-learn. Its spread is the same
    everywhere. The order of measuring is not used.
    """

    def __init__(self, trees: int = 150, depth: int = 3, rate: float = 0.08, seed: int = 0):
        self.trees, self.depth, self.rate, self.seed = trees, depth, rate, seed

    def fit(self, table: Table, values: Floats) -> Boosting:
        self.encoding = Additive().fit(table, values)
        self.x, self.y = self.encoding.columns(table), values
        self.fitted = self._fitted(self.x, values)
        return self

    def _fitted(self, x: Floats, y: Floats) -> Any:
        try:
            from sklearn.ensemble import GradientBoostingRegressor
        except ImportError as missing:
            raise ImportError("boosting needs scikit-learn: install it, or choose model='gaussian'") from missing
        middle = float(np.median(y))
        reach = 5 * 1.4826 * float(np.median(np.abs(y - middle))) or np.inf
        model = GradientBoostingRegressor(n_estimators=self.trees, max_depth=self.depth, subsample=0.7, max_features=0.5,
                                          learning_rate=self.rate, random_state=self.seed)
        return model.fit(x, np.clip(y, middle - reach, middle + reach))

    def predict(self, table: Table) -> Belief:
        mean = self.fitted.predict(self.encoding.columns(table))
        return Belief(mean, np.ones(len(mean)))

    def out_of_fold(self, folds: Any, sessions: bool = True) -> Belief:
        mean = np.zeros(len(self.y))
        folds = folds if len(self.y) <= MANY else folds % 5
        for fold in np.unique(folds):
            out, rest = folds == fold, folds != fold
            mean[out] = self._fitted(self.x[rest], self.y[rest]).predict(self.x[out])
        return Belief(mean, np.ones(len(mean)))
