"""How well one score ranks candidates by another: rank correlations and regret, with bootstrap intervals.

Every statistic here takes a score and the truth with larger taken as better in both, and is vectorised over leading
axes, which is what the bootstrap needs. All intervals of one set of candidates come from the same resamples, so
that two scores of the same candidates are compared on the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["Agreement", "Interval", "agreement", "bootstrap", "kendall", "kendall_by_bin", "size_bins", "spearman",
           "top_k_regret"]

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
_BATCH = 100  # resamples at a time: 100 * n * n / 2 numbers in memory


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % percentile bootstrap interval over the candidates."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of two scores over `count` candidates; `low` to `high` holds tau with 95 % confidence."""

    count: int
    tau: float
    low: float
    high: float
    spearman: float
    spearman_low: float
    spearman_high: float


def agreement(x: Sequence[float], y: Sequence[float], resamples: int = 2000, seed: int = 0) -> Agreement:
    """Kendall's tau-b and Spearman's rho of paired scores, with percentile bootstrap intervals over the candidates.

    Pairs with NaN are left out. Raises ValueError with fewer than three pairs.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (x, y))
    known = ~(np.isnan(left) | np.isnan(right))
    count = int(known.sum())
    if count < 3:
        raise ValueError(f"a rank correlation needs at least three candidates: got {count}")
    tau, rho = (bootstrap(statistic, left[known], right[known], resamples=resamples, seed=seed)
                for statistic in (kendall, spearman))
    return Agreement(count, tau.value, tau.low, tau.high, rho.value, rho.low, rho.high)


def bootstrap(statistic: Callable[..., Floats], *columns: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """`statistic(*columns)` with its percentile interval when candidates are drawn again with replacement.

    The columns hold one number per candidate and no NaN; a candidate is drawn with all its numbers. The same seed and
    count of candidates give the same draws whatever the statistic.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    count = arrays[0].shape[-1]
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    parts = np.array_split(drawn, max(1, math.ceil(resamples / _BATCH)))
    found = np.concatenate([statistic(*(array[part] for array in arrays)) for part in parts])
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def kendall(x: ArrayLike, y: ArrayLike, bins: ArrayLike | None = None) -> Floats:
    """Kendall's tau-b along the last axis (Kendall, 1945), of all pairs or of those with both in one of `bins`.

    Pairs tied in either score count as neither order; 0 where no pair is ordered by both. Quadratic in candidates.
    """
    agree, ordered = _pairs(x, y)
    return _tau(agree, ordered, None if bins is None else _together(bins))


def kendall_by_bin(x: ArrayLike, y: ArrayLike, bins: ArrayLike) -> Floats:
    """The mean over bins of tau-b inside each; bins in which a score is constant are left out, 0 if all are."""
    agree, ordered = _pairs(x, y)
    labels, together = np.asarray(bins, dtype=np.float64), _together(bins)
    first, _ = np.triu_indices(labels.shape[-1], k=1)
    of = labels[..., first]
    masks = [together & (of == label) for label in np.unique(labels)]
    taus = np.stack([_tau(agree, ordered, mask) for mask in masks])
    known = np.stack([np.prod([(side * mask).sum(-1) for side in ordered], axis=0) > 0 for mask in masks])
    return np.where(known.any(0), (taus * known).sum(0) / np.maximum(known.sum(0), 1), 0.0)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Floats, tuple[Floats, Floats]]:
    """For every pair of candidates: +1, 0 or -1 as both scores order it alike; and whether each orders it at all."""
    left, right = (np.asarray(side, dtype=np.float64) for side in (x, y))
    first, second = np.triu_indices(left.shape[-1], k=1)
    a = np.sign(left[..., first] - left[..., second])
    b = np.sign(right[..., first] - right[..., second])
    return a * b, (a * a, b * b)


def _together(bins: ArrayLike) -> NDArray[np.bool_]:
    labels = np.asarray(bins, dtype=np.float64)
    first, second = np.triu_indices(labels.shape[-1], k=1)
    return np.asarray(labels[..., first] == labels[..., second])


def _tau(agree: Floats, ordered: tuple[Floats, Floats], mask: NDArray[np.bool_] | None) -> Floats:
    if mask is not None:
        agree, ordered = agree * mask, (ordered[0] * mask, ordered[1] * mask)
    scale = np.sqrt(ordered[0].sum(-1) * ordered[1].sum(-1))
    return np.where(scale > 0, agree.sum(-1) / np.where(scale > 0, scale, 1.0), 0.0)


def spearman(x: ArrayLike, y: ArrayLike) -> Floats:
    """Spearman's rho along the last axis: the correlation of ranks, tied ones averaged; a constant side gives 0."""
    a, b = (stats.rankdata(np.asarray(side, dtype=np.float64), axis=-1) for side in (x, y))
    a, b = (side - side.mean(-1, keepdims=True) for side in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.where(scale > 0, scale, 1.0), 0.0)


def top_k_regret(score: ArrayLike, truth: ArrayLike, k: int) -> Floats:
    """The best true value of all, less the best among the `k` that `score` ranks first; in the unit of `truth`.

    Larger is better in both. Where the score ties across the k-th place, the mean over all ways to break the tie, so a
    constant score has the regret of picking k at random. With k at or above the number of candidates it is 0. Raises
    ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k counts the candidates that are looked at and is at least 1: got {k}")
    scores, truths = np.broadcast_arrays(np.asarray(score, dtype=np.float64), np.asarray(truth, dtype=np.float64))
    count = scores.shape[-1]
    rows = zip(scores.reshape(-1, count), truths.reshape(-1, count), strict=True)
    return np.array([_regret(row, true, min(k, count)) for row, true in rows]).reshape(scores.shape[:-1])


def _regret(score: Floats, truth: Floats, k: int) -> float:
    border = np.partition(score, -k)[-k]
    above, tied = truth[score > border], np.sort(truth[score == border])[::-1]
    seats = k - len(above)
    sure = float(above.max()) if len(above) else -math.inf
    ways = math.comb(len(tied), seats)  # the j-th best of the tied is the best drawn in comb(rest, seats - 1) of them
    expected = sum(math.comb(len(tied) - j - 1, seats - 1) / ways * max(sure, float(tied[j]))
                   for j in range(len(tied) - seats + 1))
    return max(0.0, float(truth.max()) - expected)


def size_bins(sizes: Sequence[float], count: int) -> list[int]:
    """A bin for every candidate, 0 for the smallest: about equal membership, and equal sizes never apart."""
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    bins = [0] * len(sizes)
    for place, index in enumerate(order):
        tied = place > 0 and sizes[index] == sizes[order[place - 1]]
        bins[index] = bins[order[place - 1]] if tied else place * count // len(order)
    return bins
