"""Intervals that hold as often as they say, whatever the model: conformal prediction."""

from __future__ import annotations

import math

import numpy as np

from .table import Floats

__all__ = ["fewest", "margin"]


def fewest(coverage: float) -> int:
    """How many samples an interval of this coverage needs at least: 9 for 0.9."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def margin(errors: Floats, spreads: Floats, coverage: float) -> float:
    """How many of its own spreads an interval reaches to both sides of a prediction.

    errors, spreads: float64[N] of predictions that did not see the value they are compared with. The margin is the
    ceil((N + 1) coverage)-th smallest |error| / spread, so that a new sample of the same kind falls inside with at least
    that probability when the model is the one that made the errors. With errors from cross-validation, as `Predictor` has
    them, the model that predicts has seen a little more, and the guarantee is as the tests measure it. Normalized
    Nonconformity Measures for Regression Conformal Prediction (Papadopoulos et al., 2008); Cross-conformal predictors
    (Vovk, 2015). Raises ValueError when there are fewer than `fewest(coverage)` errors.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage lies between 0 and 1: got {coverage}")
    if len(errors) < fewest(coverage):
        raise ValueError(f"an interval with coverage {coverage:g} needs at least {fewest(coverage)} samples: got "
                         f"{len(errors)}; measure more, or ask for less coverage")
    scores = np.sort(np.abs(errors) / spreads)
    return float(scores[math.ceil((len(errors) + 1) * coverage - 1e-9) - 1])
