"""Predictors: exact sums recognised, intervals that hold, sessions kept apart, bad input answered."""

import numpy as np
import pytest
from bodyplan.evaluators.predictors import Boosting, GaussianProcess, Predictor, Table, additivity, as_table
from bodyplan.evaluators.predictors.conformal import fewest, margin

NAMES = ("conv3", "conv5", "skip", "pool")


def sequences(rows, positions=6, seed=0):
    """Random operators, and the cost of each at each position."""
    rng = np.random.default_rng(seed)
    operators = rng.choice(NAMES, (rows, positions))
    costs = rng.uniform(0.5, 4.0, (positions, len(NAMES)))
    chosen = np.stack([operators == name for name in NAMES], axis=2)
    return [list(row) for row in operators.tolist()], (chosen * costs).sum(axis=(1, 2)) + 1.0


def sizes(rows, seed=0, noise=0.05):
    """Depth, width and kernel with a latency that is a product of them, noise growing with depth."""
    rng = np.random.default_rng(seed)
    depth, width, kernel = rng.integers(1, 9, rows), rng.integers(1, 9, rows) * 64.0, rng.choice([3.0, 5.0, 7.0], rows)
    latency = (2.0 + depth * (width / 100 + 0.3 * kernel)) * np.exp(noise * rng.normal(size=rows))
    return {"depth": depth.astype(float), "width": width, "kernel": kernel}, latency


def part(columns, rows):
    return {name: column[rows] for name, column in columns.items()}


def test_an_exact_sum_is_recognised_and_predicted_to_rounding():
    samples, latency = sequences(120)
    predictor = Predictor("gaussian").fit(samples[:60], latency[:60])
    value, low, high = predictor.predict(samples[60:])
    assert predictor.report.additive
    assert np.allclose(value, latency[60:], rtol=1e-9)
    assert np.all((low <= latency[60:]) & (latency[60:] <= high)) and np.all((high - low) / value < 1e-5)


def test_a_sum_with_an_interaction_is_not_taken_for_exact_and_still_predicted():
    samples, latency = sequences(300)
    latency = latency + np.array([1.5 * (row[0] == "skip" and row[1] == "skip") for row in samples])
    predictor = Predictor("gaussian").fit(samples[:150], latency[:150])
    assert not predictor.report.additive
    value = predictor.predict(samples[150:]).value
    assert np.abs(value / latency[150:] - 1).mean() < 0.03


def test_too_few_samples_cannot_show_that_a_sum_is_exact():
    samples, latency = sequences(20)
    assert additivity(as_table(samples), latency) is None


def test_an_exact_sum_says_nothing_exact_of_an_operator_that_it_never_saw():
    samples, latency = sequences(60)
    predictor = Predictor("gaussian").fit(samples, latency)
    value, low, high = predictor.predict([["new", *samples[0][1:]]])
    assert np.isfinite(value[0]) and high[0] - low[0] > 1e-3


def test_the_margin_is_the_rank_of_the_scores():
    errors = np.arange(1.0, 20.0)
    assert margin(errors, np.ones(19), 0.9) == 18.0        # ceil(20 x 0.9)-th of 19
    assert margin(errors, np.full(19, 2.0), 0.9) == 9.0
    assert fewest(0.9) == 9 and margin(errors[:9], np.ones(9), 0.9) == 9.0
    with pytest.raises(ValueError, match="at least 9 samples: got 8"):
        margin(errors[:8], np.ones(8), 0.9)


def held(model, rows, splits):
    """What 90 % intervals held in the mean over exchangeable splits of one table."""
    columns, latency = sizes(600, noise=0.1)
    found = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(600)
        train, test = order[:rows], order[rows:]
        fitted = Predictor(model(seed), seed=seed).fit(part(columns, train), latency[train])
        _, low, high = fitted.predict(part(columns, test))
        found.append(np.mean((low <= latency[test]) & (latency[test] <= high)))
    return np.mean(found)


@pytest.mark.parametrize("rows", [30, 50, 100, 200])
def test_ninety_percent_intervals_hold_in_ninety_percent_over_200_splits(rows):
    assert 0.88 <= held(lambda seed: "additive", rows, 200) <= 0.92


@pytest.mark.long
def test_intervals_of_boosting_hold_over_100_splits():
    """Each split with its own seed: the features that so few trees draw decide how good one seed's predictor is."""
    assert 0.88 <= held(lambda seed: Boosting(trees=10, rate=0.3, seed=seed), 50, 100) <= 0.92


@pytest.mark.long
@pytest.mark.parametrize("rows, splits", [(30, 30), (100, 10)])
def test_intervals_of_a_gaussian_process_hold(rows, splits):
    assert 0.88 <= held(lambda seed: GaussianProcess(), rows, splits) <= 0.92


@pytest.mark.long
def test_a_gaussian_process_beats_ridge_on_products_of_sizes():
    columns, latency = sizes(300)
    errors = {}
    for model in ("gaussian", "additive", "boosting"):
        value = Predictor(model).fit(part(columns, slice(80)), latency[:80]).predict(part(columns, slice(80, 300))).value
        errors[model] = np.abs(value / latency[80:] - 1).mean()
    assert errors["gaussian"] < 0.065 and errors["gaussian"] < errors["additive"] and errors["gaussian"] < errors["boosting"]


def test_outliers_do_not_move_the_prediction():
    columns, latency = sizes(300, noise=0.02)
    measured = latency[:100].copy()
    measured[::12] *= 1.8
    value = Predictor("gaussian").fit(part(columns, slice(100)), measured).predict(part(columns, slice(100, 300))).value
    assert np.abs(value / latency[100:] - 1).mean() < 0.05


def test_known_sessions_are_kept_apart_and_reported():
    columns, latency = sizes(300, noise=0.02)
    order = np.arange(300.0)
    measured = latency * np.where((order >= 100) & (order < 180), 1.25, 1.0)
    shuffled = np.random.default_rng(0).permutation(300)
    train, test = shuffled[:120], shuffled[120:]
    predictor = Predictor("gaussian").fit(part(columns, train), measured[train], order=order[train])
    knowing = predictor.predict(part(columns, test), order=order[test]).value
    typical = predictor.predict(part(columns, test)).value
    assert np.abs(knowing / measured[test] - 1).mean() < 0.05
    assert np.abs(typical / latency[test] - 1).mean() < 0.05
    assert predictor.report.drift.largest > 0.15 and "sessions" in str(predictor.report)


def test_an_update_is_a_fit_of_all():
    columns, latency = sizes(60)
    together = Predictor("gaussian").fit(columns, latency)
    grown = Predictor("gaussian").fit(part(columns, slice(40)), latency[:40])
    grown.update(part(columns, slice(40, 60)), latency[40:])
    assert np.array_equal(together.predict(columns).value, grown.predict(columns).value)


def test_out_of_fold_is_what_a_fit_without_the_fold_predicts():
    columns, latency = sizes(40)
    table, folds = as_table(columns), np.arange(40) % 4
    model = Boosting(trees=20)
    found = model.fit(table, latency).out_of_fold(folds).mean
    alone = Boosting(trees=20)
    alone.fit(table, latency)
    again = alone._fitted(alone.x[folds != 1], latency[folds != 1]).predict(alone.x[folds == 1])
    assert np.array_equal(found[folds == 1], again)


@pytest.mark.long
def test_mixing_models_needs_a_clear_gain():
    columns, latency = sizes(60)
    predictor = Predictor("auto").fit(columns, latency)
    assert sum(predictor.report.shares.values()) == pytest.approx(1.0)
    assert np.abs(predictor.predict(columns).value / latency - 1).mean() < 0.08


@pytest.mark.parametrize("change, message", [
    ({"values": [1.0] * 20}, "constant measurements say nothing"),
    ({"values": [float("nan")] + [1.0, 2.0] * 9 + [1.0]}, "values must be finite: got nan at sample 0"),
    ({"values": [0.0, 1.0] * 10}, "must be above 0: got 0 at sample 0"),
    ({"values": [1.0] * 19}, "one value per sample"),
    ({"samples": {"a": [float("inf")] + [1.0] * 19}}, "features must be finite numbers: got inf in row 0, column 'a'"),
    ({"samples": {"a": [1.0] * 20, "b": [1.0]}}, "equally long"),
    ({"samples": []}, "needs samples"),
])
def test_bad_input_is_answered_before_any_work(change, message):
    given = {"samples": {"a": np.arange(20.0)}, "values": np.arange(1.0, 21.0), **change}
    with pytest.raises(ValueError, match=message):
        Predictor("gaussian").fit(given["samples"], given["values"])


def test_too_few_samples_are_counted():
    with pytest.raises(ValueError, match="at least 9 samples here: got 4; measure 5 more"):
        Predictor().fit({"a": np.arange(4.0)}, [1.0, 2.0, 3.0, 4.0])


def test_unknown_models_and_other_columns_are_named():
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        Predictor("gausian")
    with pytest.raises(TypeError, match="fit, predict and out_of_fold"):
        Predictor(3)
    columns, latency = sizes(20)
    fitted = Predictor("additive").fit(columns, latency)
    with pytest.raises(ValueError, match="need the columns that were fitted"):
        fitted.predict({"depth": [1.0]})
    with pytest.raises(TypeError, match="got a list of int"):
        as_table([1, 2])
    with pytest.raises(ValueError, match="one column per name"):
        Table(np.zeros((3, 2)), ("a",))
