"""How well inherited scores rank candidates: against training them alone, and beside what is free.

A supernet is worth its training only if candidates ordered by inherited weights stand in nearly the order
they would after training alone, and nearer than an order by size. So every supernet sweep trains a sample
alone and reports Kendall's tau, Spearman's rho and the top-k regret with their intervals beside those of the
trivial proxies, and tau within bins of equal parameters, where size says nothing. With one standalone seed
per candidate, tau has a ceiling below 1 (about 0.8 on small spaces), because training itself is noisy; a
second seed of the same candidates measures it (Yu et al., 2020, "Evaluating the search phase of neural
architecture search", on why the baseline and the noise belong beside the number).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .journal import Trial
from .ranking import Agreement, agreement, bootstrap, kendall, kendall_by_bin, size_bins, top_k_regret

__all__ = ["Agreement", "agreement", "judge", "kendall", "measure_fidelity", "stratified", "stratified_indices"]

Floats = NDArray[np.float64]
REGRET_OF = (1, 5)
MOST_BINS = 5
SMALLEST_BIN = 4


def stratified(trials: Sequence[Trial], sizes: Sequence[float], count: int, seed: int,
               prefer: Sequence[int] = ()) -> list[Trial]:
    """`count` trials spread over size: one drawn from each of `count` bins of equal membership, smallest bin
    first.

    All of them when there are no more than `count`; none of an empty set. Equal sizes are ordered by number.
    From a bin that holds numbers to `prefer` (those of samples before), the first of them is taken.
    """
    order = sorted(range(len(trials)), key=lambda index: trials[index].number)
    place_of = {trials[index].number: place for place, index in enumerate(order)}
    preferred = [place_of[number] for number in prefer if number in place_of]
    chosen = stratified_indices([sizes[index] for index in order], count, seed, preferred)
    return [trials[order[place]] for place in chosen]


def stratified_indices(sizes: Sequence[float], count: int, seed: int, prefer: Sequence[int] = ()) -> list[int]:
    """Where in `sizes` a sample spread over size lies; see `stratified`. Equal sizes are ordered as given."""
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    if count == 0 or len(order) <= count:
        return order if count else []
    rng = Random(seed)
    edges = [len(order) * bin_ // count for bin_ in range(count + 1)]
    chosen = []
    for low, high in zip(edges, edges[1:], strict=False):
        drawn, bin_ = order[rng.randrange(low, high)], set(order[low:high])
        chosen.append(next((index for index in prefer if index in bin_), drawn))
    return chosen


def measure_fidelity(inherited: Sequence[float], standalone: Sequence[float], goal: str,
                     proxies: Mapping[str, Sequence[float]], again: Sequence[float] | None = None) -> dict[str, Any]:
    """What `judge` says of the inherited score, and of each proxy (larger taken as better), against training alone.

    With a proxy called "parameters", tau is also taken within bins of equal parameters. `again` holds the values of
    a second standalone seed of the same candidates: judged like a score, they are the "ceiling". The answer is the
    body of a journal's "fidelity" event, apart from which candidates were used. Raises ValueError with fewer than
    three candidates whose numbers are known.
    """
    sign = 1 if goal == "max" else -1
    score, truth = (sign * np.asarray(side, dtype=np.float64) for side in (inherited, standalone))
    sizes = proxies.get("parameters")
    bins = None if sizes is None else fitting_bins(sizes)
    judged = {name: judge(np.asarray(values, dtype=np.float64), truth, bins) for name, values in proxies.items()}
    ceiling = None if again is None else judge(sign * np.asarray(again, dtype=np.float64), truth, bins)
    return {**judge(score, truth, bins), "confidence": 0.95, "method": "percentile bootstrap", "proxies": judged,
            "ceiling": ceiling}


def fitting_bins(sizes: Sequence[float]) -> list[int] | None:
    """Bins of equal parameters, five or as many as hold four candidates each; None where that is only one."""
    count = min(MOST_BINS, len(sizes) // SMALLEST_BIN)
    return size_bins(sizes, count) if count > 1 else None


def judge(score: Floats, truth: Floats, bins: Sequence[int] | None = None) -> dict[str, Any]:
    """Every statistic of one score against the truth, larger taken as better in both; candidates with NaN are left out.

    "regret" is a list of {k, value, low, high} in the unit of the truth; "within" holds tau of the pairs inside a bin
    with its interval, and "mean", the average of each bin's own tau with its interval; None without bins.
    """
    known = ~(np.isnan(score) | np.isnan(truth))
    score, truth = score[known], truth[known]
    found = {**asdict(agreement(score.tolist(), truth.tolist())),
             "regret": [{"k": k, **asdict(bootstrap(_regret_of(k), score, truth))} for k in REGRET_OF if k < len(score)]}
    return {**found, "within": None if bins is None else _within(score, truth, np.asarray(bins)[known])}


def _regret_of(k: int) -> Any:
    return lambda score, truth: top_k_regret(score, truth, k)


def _within(score: Floats, truth: Floats, bins: NDArray[Any]) -> dict[str, Any]:
    pooled, mean = bootstrap(kendall, score, truth, bins), bootstrap(kendall_by_bin, score, truth, bins)
    return {"bins": len(np.unique(bins)), "tau": pooled.value, "low": pooled.low, "high": pooled.high,
            "mean": mean.value, "mean_low": mean.low, "mean_high": mean.high}
