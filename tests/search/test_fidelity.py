"""Rank statistics against brute force and scipy, their intervals, and the sample they are measured on."""

from itertools import combinations, permutations

import numpy as np
import pytest
from bodyplan.search.fidelity import (
    agreement,
    fitting_bins,
    judge,
    kendall,
    measure_fidelity,
    stratified,
    stratified_indices,
)
from bodyplan.search.journal import Trial
from bodyplan.search.ranking import bootstrap, kendall_by_bin, size_bins, spearman, top_k_regret
from bodyplan.space.genome import Genome
from scipy import stats


def trials(count):
    return [Trial(number, Genome({"width": number})) for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_tau_b_with_and_without_ties(seed):
    rng = np.random.default_rng(seed)
    for x, y in ((rng.normal(size=15), rng.normal(size=15)), (rng.integers(0, 4, 15), rng.integers(0, 4, 15))):
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_tau_is_vectorised_over_leading_axes_and_zero_for_a_constant():
    x, y = np.random.default_rng(0).normal(size=(2, 7, 9))
    assert np.allclose(kendall(x, y), [kendall(a, b) for a, b in zip(x, y, strict=True)])
    assert kendall([1, 1, 1], [1, 2, 3]) == 0.0


def test_the_interval_holds_tau_and_narrows_with_more_candidates():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    y = x + rng.normal(size=100)
    few, many = agreement(x[:12], y[:12]), agreement(x, y, resamples=200)
    assert few.low <= few.tau <= few.high and many.low <= many.tau <= many.high
    assert many.high - many.low < few.high - few.low
    assert agreement(x[:12], y[:12]) == few


def test_pairs_with_nan_are_left_out_and_three_are_needed():
    assert agreement([1, 2, 3, float("nan")], [1, 2, 3, 0]).count == 3
    with pytest.raises(ValueError, match="at least three candidates: got 2"):
        agreement([1, 2, float("nan")], [1, 2, 3])


def test_perfect_agreement_is_one_and_proxies_count_larger_as_better():
    body = measure_fidelity([1, 2, 3, 4], [10, 20, 30, 40], "min", {"parameters": [4, 3, 2, 1]})
    assert body["tau"] == body["spearman"] == 1.0
    assert body["proxies"]["parameters"]["tau"] == 1.0
    assert measure_fidelity([1, 2, 3], [1, 2, 3], "max", {"size": [1, 2, 3]})["proxies"]["size"]["tau"] == 1.0


def test_the_sample_takes_one_from_every_bin_of_size():
    sizes = list(np.random.default_rng(0).permutation(100))
    chosen = stratified(trials(100), sizes, 10, seed=0)
    assert [int(sizes[trial.number]) // 10 for trial in chosen] == list(range(10))
    assert stratified(trials(100), sizes, 10, seed=0) == chosen


def test_a_sample_of_few_is_all_of_them_and_of_none_is_empty():
    assert [t.number for t in stratified(trials(3), [3, 1, 2], 12, seed=0)] == [1, 2, 0]
    assert stratified([], [], 12, seed=0) == [] and stratified(trials(3), [1, 2, 3], 0, seed=0) == []


def test_earlier_samples_are_taken_again_where_a_bin_holds_them():
    sizes = list(range(100))
    first = [trial.number for trial in stratified(trials(100), sizes, 10, seed=0)]
    more = [trial.number for trial in stratified(trials(100), sizes, 20, seed=0, prefer=first)]
    assert set(first) <= set(more) and [number // 5 for number in more] == list(range(20))
    assert [trial.number for trial in stratified(trials(100), sizes, 10, seed=0, prefer=first + more)] == first
    assert stratified_indices(sizes, 10, seed=0) == first


def random_scores(rng, count, levels):
    """Two scores, with ties where there are few levels."""
    return (rng.integers(0, levels, count).astype(float) for _ in range(2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 4, 100])
def test_spearman_is_scipys(seed, levels):
    x, y = random_scores(np.random.default_rng(seed), 12, levels)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.allclose(spearman(np.stack([x, y]), np.stack([y, y])), [spearman(x, y), 1.0])
    assert spearman(np.ones(4), [1, 2, 3, 4]) == 0.0


def tau_by_counting(x, y, pairs):
    agree = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)
    ordered = [sum(side[i] != side[j] for i, j in pairs) for side in (x, y)]
    return agree / np.sqrt(ordered[0] * ordered[1]) if all(ordered) else 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [3, 100])
def test_tau_within_bins_counts_pairs_of_one_bin_alone(seed, levels):
    rng = np.random.default_rng(seed)
    x, y = random_scores(rng, 14, levels)
    bins = rng.integers(0, 4, 14)
    pairs = [(i, j) for i, j in combinations(range(14), 2) if bins[i] == bins[j]]
    assert kendall(x, y, bins) == pytest.approx(tau_by_counting(x, y, pairs))
    assert kendall(x, y, np.zeros(14)) == kendall(x, y)
    members = [np.flatnonzero(bins == label) for label in np.unique(bins)]
    usable = [m for m in members if len(set(x[m])) > 1 and len(set(y[m])) > 1]
    own = [stats.kendalltau(x[m], y[m]).statistic for m in usable]
    assert kendall_by_bin(x, y, bins) == pytest.approx(np.mean(own) if own else 0.0)


def test_statistics_within_bins_are_vectorised_with_bins_that_go_along():
    rng = np.random.default_rng(0)
    x, y, bins = rng.normal(size=(6, 10)), rng.normal(size=(6, 10)), rng.integers(0, 3, (6, 10))
    for statistic in (kendall, kendall_by_bin):
        assert np.allclose(statistic(x, y, bins), [statistic(a, b, c) for a, b, c in zip(x, y, bins, strict=True)])
    assert kendall([1, 2, 3], [1, 2, 3], [0, 1, 2]) == kendall_by_bin([1, 2, 3], [1, 2, 3], [0, 1, 2]) == 0.0


def regret_by_trying(score, truth, k):
    """The mean over all orders of the candidates that the score allows."""
    found = [max(truth[i] for i in order[:k]) for order in permutations(range(len(score)))
             if all(score[a] >= score[b] for a, b in zip(order, order[1:], strict=False))]
    return max(truth) - np.mean(found)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [1, 2, 3, 100])
def test_regret_is_the_mean_over_all_ways_to_break_ties(seed, levels):
    rng = np.random.default_rng(seed)
    score, truth = rng.integers(0, levels, 6).astype(float), rng.integers(0, 50, 6) / 10
    for k in (1, 2, 4, 6):
        assert top_k_regret(score, truth, k) == pytest.approx(regret_by_trying(score, truth, k), abs=1e-12)
    assert top_k_regret(score, truth, 99) == 0.0


def test_regret_is_vectorised_and_falls_with_k():
    rng = np.random.default_rng(0)
    score, truth = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    assert np.allclose(top_k_regret(score, truth, 3), [top_k_regret(s, t, 3) for s, t in zip(score, truth, strict=True)])
    falling = np.stack([top_k_regret(score, truth, k) for k in range(1, 10)])
    assert (np.diff(falling, axis=0) <= 0).all() and (falling[-1] == 0).all()
    with pytest.raises(ValueError, match="at least 1: got 0"):
        top_k_regret(score, truth, 0)


def test_the_interval_is_the_quantiles_over_resampled_candidates():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 10))
    found = bootstrap(kendall, x, y, resamples=300, seed=7)
    draws = np.random.default_rng(7).integers(0, 10, (300, 10))
    low, high = np.quantile([kendall(x[row], y[row]) for row in draws], [0.025, 0.975])
    assert (found.value, found.low, found.high) == pytest.approx((float(kendall(x, y)), low, high))


def test_the_interval_holds_the_population_value_about_as_often_as_it_says():
    """200 samples of 30 from a normal pair with rho 0.6, whose tau is 2/pi asin(rho)."""
    rng, true, held = np.random.default_rng(0), 2 / np.pi * np.arcsin(0.6), 0
    for _ in range(200):
        x, noise = rng.normal(size=(2, 30))
        found = bootstrap(kendall, x, 0.6 * x + 0.8 * noise, resamples=200)
        held += found.low <= true <= found.high
    assert 0.88 <= held / 200 <= 1.0


def test_bins_hold_about_equally_many_and_equal_sizes_stay_together():
    assert size_bins([5, 1, 4, 2, 3, 6], 3) == [2, 0, 1, 0, 1, 2]
    assert size_bins([1, 1, 1, 1, 2, 3], 3) == [0, 0, 0, 0, 2, 2]
    assert fitting_bins([1, 2, 3]) is None and len(set(fitting_bins(range(12)))) == 3
    assert len(set(fitting_bins(range(50)))) == 5


def test_a_judgement_leaves_out_unknown_candidates_everywhere():
    rng = np.random.default_rng(0)
    score, truth = rng.normal(size=(2, 16))
    bins = [index // 4 for index in range(16)]
    known = np.arange(16) != 5
    whole = judge(np.where(known, score, np.nan), truth, bins)
    assert whole == judge(score[known], truth[known], np.array(bins)[known].tolist()) and whole["count"] == 15
    assert [regret["k"] for regret in whole["regret"]] == [1, 5] and whole["within"]["bins"] == 4


def test_the_ceiling_is_the_second_seed_judged_like_a_score():
    rng = np.random.default_rng(0)
    alone, again, inherited = rng.normal(size=(3, 20)).tolist()
    body = measure_fidelity(inherited, alone, "min", {"parameters": list(range(20))}, again)
    as_score = measure_fidelity(again, alone, "min", {"parameters": list(range(20))})
    assert body["ceiling"] == {name: as_score[name] for name in body["ceiling"]}
    assert body["ceiling"]["within"]["bins"] == body["within"]["bins"] == body["proxies"]["parameters"]["within"]["bins"] == 5
    assert measure_fidelity(inherited, alone, "min", {})["ceiling"] is None


def test_regret_is_in_the_unit_of_the_metric_whatever_its_direction():
    alone, inherited = [3.0, 2.0, 2.5, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert measure_fidelity(inherited, alone, "min", {})["regret"][0]["value"] == pytest.approx(1.0)
    assert measure_fidelity(inherited, alone, "max", {})["regret"][0]["value"] == pytest.approx(0.0)
