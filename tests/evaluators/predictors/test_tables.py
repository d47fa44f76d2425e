"""Predictors on latencies that others measured; skips where the tables are missing."""

import numpy as np
import pytest
from bodyplan.evaluators.predictors import Predictor, Transfer
from bodyplan.experiments import latency_tables
from scipy.stats import spearmanr


@pytest.fixture(scope="module")
def folder():
    try:
        return latency_tables.tables_folder()
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("device, most", [("Titan Xp", 0.058), ("Raspberry Pi 4", 0.052)])
def test_hundred_transformers_are_enough(folder, device, most):
    table, latency = latency_tables.hat(folder, device)
    found = [latency_tables._curve(table, latency, 100, seed, "gaussian", "unknown")["mape"] for seed in range(2)]
    assert np.mean(found) <= most


def test_the_raspberry_pi_of_fbnet_is_an_exact_sum(folder):
    table, latencies = latency_tables.fbnet(folder)
    train, test = latency_tables._split(len(table), 200, 0)
    fitted = Predictor("gaussian").fit(table.rows(train), latencies["raspi4"][train])
    assert fitted.report.additive
    assert spearmanr(fitted.predict(table.rows(test)).value, latencies["raspi4"][test])[0] > 0.9995


def test_a_xeon_from_ten_samples(folder):
    table, latencies = latency_tables.fbnet(folder)
    transfer = Transfer(table, {name: v for name, v in latencies.items() if name != "gold_6240"})
    assert latency_tables._few(transfer, latencies["gold_6240"], "chosen", 0)["spearman"] > 0.85


@pytest.mark.long
def test_networks_that_no_known_device_measured(folder):
    table, latencies = latency_tables.fbnet(folder)
    kept, out = latency_tables._split(len(table), 1000, 0)
    out = out[:300]
    others = {name: values[kept] for name, values in latencies.items() if name != "raspi4"}
    transfer, truth = Transfer(table.rows(kept), others), latencies["raspi4"]
    rows = transfer.choose(10)
    found = transfer.fit(rows, truth[kept][rows]).predict(table.rows(out))
    assert spearmanr(found.value, truth[out])[0] > 0.85
    assert np.mean((found.low <= truth[out]) & (truth[out] <= found.high)) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("device", ["Titan Xp", "Raspberry Pi 4", "gold_6240"])
def test_intervals_from_thirty_samples_hold(folder, device):
    if device == "gold_6240":
        table, latencies = latency_tables.fbnet(folder)
        latency = latencies[device]
    else:
        table, latency = latency_tables.hat(folder, device)
    found = [latency_tables._curve(table, latency, 30, seed, "gaussian", "unknown")["coverage"] for seed in range(20)]
    assert 0.85 <= np.mean(found) <= 0.95


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(ValueError, match="say where with --tables"):
        latency_tables.tables_folder(str(tmp_path))
