"""How well inherited scores rank candidates: rank correlation with training them alone, and with what is
free.

A supernet is worth its training only if candidates ordered by inherited weights stand in nearly the order
they would after training alone, and nearer than an order by size. So every supernet sweep trains a sample
alone and reports Kendall's tau with its interval beside that of the trivial proxies. With one standalone seed
per candidate, tau has a ceiling below 1 (about 0.8 on small spaces), because training itself is noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .journal import Trial

__all__ = ["Agreement", "agreement", "kendall", "measure_fidelity", "stratified"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of two scores over `count` candidates; `low` to `high` holds tau with 95 %
    confidence."""

    count: int
    tau: float
    low: float
    high: float
    spearman: float


def kendall(x: ArrayLike, y: ArrayLike) -> Floats:
    """Kendall's tau-b along the last axis; ties count as neither order, a constant side gives 0.

    Quadratic in the number of pairs and vectorised over leading axes, which is what the bootstrap needs.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (x, y))
    first, second = np.triu_indices(left.shape[-1], k=1)
    a = np.sign(left[..., first] - left[..., second])
    b = np.sign(right[..., first] - right[..., second])
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.where(scale > 0, scale, 1.0), 0.0)


def agreement(x: Sequence[float], y: Sequence[float], resamples: int = 2000, seed: int = 0) -> Agreement:
    """Tau and Spearman's rho of paired scores, with a percentile bootstrap interval over the candidates.

    Pairs with NaN are left out. Raises ValueError with fewer than three pairs.
    """
    pairs = np.array([x, y], dtype=np.float64)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    count = pairs.shape[1]
    if count < 3:
        raise ValueError(f"a rank correlation needs at least three candidates: got {count}")
    interval = stats.bootstrap((pairs[0], pairs[1]), lambda a, b, axis=-1: kendall(a, b), paired=True,
                               vectorized=True, n_resamples=resamples, batch=100, method="percentile",
                               rng=np.random.default_rng(seed)).confidence_interval
    constant = (np.ptp(pairs, axis=1) == 0).any()
    rho = 0.0 if constant else float(stats.spearmanr(pairs[0], pairs[1]).statistic)
    return Agreement(count, float(kendall(*pairs)), float(interval.low), float(interval.high), rho)


def stratified(trials: Sequence[Trial], sizes: Sequence[float], count: int, seed: int) -> list[Trial]:
    """`count` trials spread over size: one drawn from each of `count` bins of equal membership, smallest bin
    first.

    All of them when there are no more than `count`; none of an empty set. Equal sizes are ordered by number.
    """
    order = sorted(range(len(trials)), key=lambda index: (sizes[index], trials[index].number))
    if count == 0 or len(order) <= count:
        return [trials[index] for index in order if count]
    rng = Random(seed)
    edges = [len(order) * bin_ // count for bin_ in range(count + 1)]
    return [trials[order[rng.randrange(low, high)]] for low, high in zip(edges, edges[1:], strict=False)]


def measure_fidelity(inherited: Sequence[float], standalone: Sequence[float], goal: str,
                     proxies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Agreement of the inherited with the standalone score, and of each proxy (larger taken as better).

    The answer is the body of a journal's "fidelity" event, apart from which candidates were used.
    """
    better = np.asarray(standalone, dtype=np.float64) * (1 if goal == "max" else -1)
    trivial = {name: asdict(agreement(list(scores), better.tolist())) for name, scores in proxies.items()}
    return {**asdict(agreement(inherited, standalone)), "confidence": 0.95, "method": "percentile bootstrap",
            "proxies": trivial}
