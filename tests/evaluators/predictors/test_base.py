"""A base and prices: what is known beforehand of a value, and what whole samples say of their parts."""

import bodyplan as bp
import numpy as np
import pytest
from bodyplan.evaluators.predictors import Predictor, Table, as_table, features
from bodyplan.evaluators.predictors.prices import Prices


@pytest.fixture(scope="module")
def measured():
    """A sum over twenty operators at eight positions, a smooth correction by its size, and 2 % noise."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 20, (300, 8))
    base = 1 + rng.uniform(0.2, 4.0, (8, 20))[np.arange(8), kinds].sum(axis=1)
    size = rng.uniform(0, 1, 300)
    values = base * np.exp(0.3 * np.sin(3 * size) - 0.2) * np.exp(0.02 * rng.normal(size=300))
    operators = np.array([[f"op{kind}" for kind in row] for row in kinds])
    return Table(size[:, None], ("size",), operators), base, values


def test_a_base_needs_fewer_samples(measured):
    table, base, values = measured
    train, test = slice(0, 25), slice(25, 300)
    alone = Predictor("gaussian").fit(table.rows(train), values[train]).predict(table.rows(test))
    found = Predictor("gaussian").fit(table.rows(train), values[train], base=base[train]).predict(table.rows(test),
                                                                                                   base=base[test])
    error, without = (np.abs(each.value / values[test] - 1).mean() for each in (found, alone))
    assert error < 0.035 and error < without / 3 and np.abs(base[test] / values[test] - 1).mean() > 0.06
    assert np.mean((found.low <= values[test]) & (values[test] <= found.high)) > 0.8


def test_a_base_that_is_the_value_but_for_its_unit_is_taken_as_it_is(measured):
    table, base, _ = measured
    found = Predictor("additive").fit(table.rows(slice(40)), 1000 * base[:40], base=base[:40])
    value, low, high = found.predict(table.rows(slice(40, 80)), base=base[40:80])
    assert np.allclose(value, 1000 * base[40:80], rtol=1e-6)
    assert np.all((low <= value) & (value <= high) & (high - low < 1e-4 * value))


def test_a_device_is_a_base(space):
    found = [space.sample(seed) for seed in range(40)]
    device = bp.Device.from_table(lambda operator, width, length: operator.macs(width, length) / 1e6 + 0.1, name="npu")
    truth = np.array([device.estimate(each, "prefill", 64).value for each in found]) ** 1.1
    table = features(found, 64, base=device)
    value = Predictor("gaussian").fit(table.rows(slice(20)), truth[:20]).predict(table.rows(slice(20, 40))).value
    assert np.abs(value / truth[20:] - 1).mean() < 0.03
    assert np.array_equal(as_table(found, base=device).base, [device.estimate(each).value for each in found])


@pytest.mark.parametrize("base, message", [
    ([1.0] * 19, "its 20 rows: got 19 in base"), ([1.0] * 19 + [0.0], "above 0: got 0.0 in row 19"),
    ([float("nan")] + [1.0] * 19, "above 0: got nan in row 0")])
def test_what_is_not_a_base_is_refused(base, message):
    with pytest.raises(ValueError, match=message):
        Predictor("additive").fit({"a": np.arange(20.0)}, np.arange(1.0, 21.0), base=base)


def test_a_base_is_asked_for_where_one_was_fitted():
    columns, values = {"a": np.arange(20.0)}, np.arange(1.0, 21.0)
    with pytest.raises(ValueError, match="samples need base"):
        Predictor("additive").fit(columns, values, base=values).predict(columns)
    with pytest.raises(ValueError, match="fit with one, or leave it out"):
        Predictor("additive").fit(columns, values).predict(columns, base=values)
    with pytest.raises(TypeError, match="lists of architectures"):
        as_table(columns, base=bp.Device.from_table({"Attention": 1.0}))


def test_an_update_keeps_the_base(measured):
    table, base, values = measured
    together = Predictor("additive").fit(table.rows(slice(40)), values[:40], base=base[:40])
    grown = Predictor("additive").fit(table.rows(slice(30)), values[:30], base=base[:30])
    grown.update(table.rows(slice(30, 40)), values[30:40], base=base[30:40])
    asked = table.rows(slice(40, 60))
    assert np.array_equal(together.predict(asked, base=base[40:60]).value, grown.predict(asked, base=base[40:60]).value)


def bills(rows, seed=0):
    """Amounts of two kinds of work in three sorts of parts, and what they come to."""
    rng = np.random.default_rng(seed)
    price = {"runs in a": 0.5, "runs in b": 2.0, "runs in c": 0.0, "macs in a": 1e-6, "macs in b": 0.0, "macs in c": 3e-6}
    amounts = tuple({name: float(rng.integers(1, 9)) * (1e6 if "macs" in name else 1) for name in price} for _ in range(rows))
    return amounts, np.array([3.0 + sum(price[name] * amount for name, amount in each.items()) for each in amounts])


def test_prices_are_found_from_whole_samples():
    amounts, values = bills(200)
    found = Prices().fit(amounts[:100], values[:100])
    assert (found.found >= 0).all()
    assert np.abs(found.total(amounts[100:]) / values[100:] - 1).mean() < 0.02


def test_what_was_never_seen_costs_what_its_sort_does():
    amounts = tuple({"runs in a": float(a), "runs in b": float(b)} for a in range(1, 9) for b in range(1, 9))
    values = np.array([1.0 + each["runs in a"] + each["runs in b"] for each in amounts])
    found = Prices().fit(amounts, values)
    assert 4.0 < found.total([{"runs in new": 5.0}])[0] < 7.0


def test_prices_make_up_for_measurements(space):
    found = [space.sample(seed) for seed in range(100)]
    table = features(found)
    rng = np.random.default_rng(0)
    price = {name: rng.uniform(0.5, 2.0) for each in table.amounts for name in each if name.startswith("runs in")}
    latency = np.array([sum(price.get(name, 0.0) * amount for name, amount in each.items()) + each["bytes in Attention"] / 1e5
                        if "bytes in Attention" in each else sum(price.get(name, 0.0) * n for name, n in each.items())
                        for each in table.amounts]) * np.exp(0.02 * rng.normal(size=100))
    fitted = Predictor("gaussian").fit(table.rows(slice(40)), latency[:40])
    assert fitted.prices is not None
    value = fitted.predict(table.rows(slice(40, 100))).value
    assert np.abs(value / latency[40:] - 1).mean() < 0.05


def test_amounts_that_say_nothing_are_left_alone():
    rng = np.random.default_rng(0)
    amounts = tuple({"x": float(n)} for n in rng.integers(1, 100, 40))
    size = rng.uniform(1, 5, 40)
    table = Table(size[:, None], ("size",), amounts=amounts)
    fitted = Predictor("additive").fit(table, np.exp(size))
    assert fitted.prices is None
    with pytest.raises(ValueError, match="not negative: got -1.0 of 'x' in row 0"):
        Table(size[:1, None], ("size",), amounts=({"x": -1.0},))
