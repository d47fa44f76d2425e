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
