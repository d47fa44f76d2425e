"""Rank correlation against scipy, its interval, and the sample it is measured on."""

import numpy as np
import pytest
from bodyplan.search.fidelity import agreement, kendall, measure_fidelity, stratified
from bodyplan.search.journal import Trial
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
