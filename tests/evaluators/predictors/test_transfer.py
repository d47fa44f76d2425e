"""Transfer: few samples of a new device with devices already known."""

import numpy as np
import pytest
from bodyplan.evaluators.predictors import Predictor, Transfer


@pytest.fixture(scope="module")
def fleet():
    """Five devices that cost a mixture of compute and traffic per operator and position; the last one is new."""
    rng = np.random.default_rng(0)
    operators = rng.choice(["a", "b", "c", "d"], (400, 8))
    hot = np.stack([operators == name for name in "abcd"], axis=2).reshape(400, -1)
    compute, traffic = rng.uniform(1, 4, hot.shape[1]), rng.uniform(1, 4, hot.shape[1])
    mixes = (0.1, 0.35, 0.6, 0.9, 0.5)
    clean = [10 + hot @ (mix * compute + (1 - mix) * traffic) for mix in mixes]
    noisy = [values * np.exp(0.01 * rng.normal(size=400)) for values in clean]
    return [list(row) for row in operators.tolist()], {str(i): v for i, v in enumerate(noisy[:4])}, noisy[4]


def correlation(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


@pytest.mark.long
def test_ten_samples_are_enough_where_devices_have_much_in_common(fleet):
    samples, known, new = fleet
    transfer = Transfer(samples, known)
    rows = transfer.choose(10)
    assert len(set(rows.tolist())) == 10
    found = transfer.fit(rows, new[rows]).predict()
    rest = np.setdiff1d(np.arange(400), rows)
    alone = Predictor("gaussian").fit([samples[i] for i in rows], new[rows]).predict([samples[i] for i in rest])
    assert correlation(found.value[rest], new[rest]) > 0.95 > correlation(alone.value, new[rest]) + 0.1
    assert np.mean((found.low <= new) & (new <= found.high)) > 0.6
    assert np.allclose(transfer.predict(rest[:3]).value, found.value[rest[:3]], rtol=1e-9)


def test_bad_input_is_answered(fleet):
    samples, known, new = fleet
    with pytest.raises(ValueError, match="at least two known devices: got 1"):
        Transfer(samples, {"one": new})
    with pytest.raises(ValueError, match="device 'dead': all 400 values are 1"):
        Transfer(samples, {**known, "dead": np.ones(400)})
    transfer = Transfer(samples, known, repeats=1)
    with pytest.raises(ValueError, match="call fit"):
        transfer.predict()
    with pytest.raises(ValueError, match="different ones of the 400"):
        transfer.fit([1, 1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="all 3 values are 2"):
        transfer.fit([1, 2, 3], [2.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="can be chosen: got 0"):
        transfer.choose(0)


def within(found, truth):
    return np.mean((found.low <= truth) & (truth <= found.high))


@pytest.mark.long
def test_samples_that_no_known_device_measured_are_predicted_too(fleet):
    samples, known, new = fleet
    kept, out = np.arange(300), np.arange(300, 400)
    transfer = Transfer([samples[i] for i in kept], {name: values[kept] for name, values in known.items()})
    rows = transfer.choose(10)
    unmeasured = [samples[i] for i in out]
    found = transfer.fit(rows, new[rows]).predict(unmeasured)
    assert correlation(found.value, new[out]) > 0.9 and within(found, new[out]) > 0.6
    few = transfer.fit(unmeasured[:12], new[out[:12]]).predict(unmeasured[12:])
    assert correlation(few.value, new[out[12:]]) > 0.9 and within(few, new[out[12:]]) > 0.6


@pytest.mark.long
def test_what_was_not_measured_on_known_devices_is_less_sure(fleet):
    samples, known, new = fleet
    fused = np.exp(0.2 * np.random.default_rng(1).normal(size=400))         # what devices share and no sum over parts tells
    transfer = Transfer(samples, {name: values * fused for name, values in known.items()})
    transfer.fit(np.arange(10), (new * fused)[:10])
    seen, unseen = transfer.predict(np.arange(100, 400)), transfer.predict(samples[100:])
    assert np.median(unseen.high / unseen.low) > 1.3 * np.median(seen.high / seen.low)
    assert within(unseen, (new * fused)[100:]) > 0.7 and correlation(seen.value, (new * fused)[100:]) > 0.95


def test_new_samples_have_what_the_known_ones_have(fleet):
    samples, known, new = fleet
    transfer = Transfer(samples, known, repeats=1).fit(np.arange(9), new[:9])
    with pytest.raises(ValueError, match="need the columns of those that are known"):
        transfer.predict({"size": [1.0]})
    with pytest.raises(ValueError, match="different ones of the 400"):
        transfer.predict([400])
    with pytest.raises(ValueError, match="coverage lies between 0 and 1"):
        transfer.predict(coverage=1.0)
