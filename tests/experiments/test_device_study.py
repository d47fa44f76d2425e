"""The study of a device: what it makes of measurements, and that it goes on where it was stopped."""

import pytest
from bodyplan.evaluators.latency import Profile
from bodyplan.experiments import bench_cost, device_study
from bodyplan.experiments.bench_candidate import LENGTH, design_space

SPACE = design_space()
DEVICE = {"kind": "cpu", "name": "made up", "cores": 1, "machine": "none"}
CONDITIONS = {"batch": 1, "length": LENGTH, "dtype": "float32", "mode": "eager", "threads": 1, "repeats": 3, "session": 0}


def written(folder, run, times, device=DEVICE):
    """Profiles of a run that took these milliseconds, by number."""
    session = {"started": run, "fingerprint": {"torch": "0"}, "load_after": 0.0}
    for phase in device_study.PHASES:
        rows = [{"hash": SPACE.sample(n).hash, "genome": SPACE.sample(n).genome.to_json(), **CONDITIONS, "phase": phase,
                 "median_ms": ms, "low_ms": ms, "high_ms": ms} for n, ms in times.items()]
        Profile(device, [session], [], rows).save(folder / f"{run}_{phase}.json")
    return folder


def test_ranks_of_two_processes_are_compared(tmp_path):
    written(tmp_path, "first", {n: 1.0 + n for n in range(10)})
    found = device_study.report(written(tmp_path, "second", {n: 1.1 * (1.0 + n) for n in range(10)}))["decode"]
    assert found["measured twice"] == 10 and found["spearman"] == pytest.approx(1.0)
    assert found["median change"] == pytest.approx(0.1) == found["largest change"]


@pytest.mark.long
def test_predictors_are_held_to_what_they_did_not_see(tmp_path):
    times = {n: 1e-6 * SPACE.sample(n).cost(LENGTH).decode_macs for n in range(80)}
    found = device_study.report(written(tmp_path, "all", times), "additive")["prefill"]
    assert found["candidates"] == 80 and found["fitted on"] == 40
    mean, low, high = found["within 10 %"]
    assert 0 < low <= mean <= high <= 1 and 0.75 < found["held by 90 % intervals"][0] <= 1


def test_measurements_of_two_machines_are_not_mixed(tmp_path):
    written(tmp_path, "first", {0: 1.0})
    written(tmp_path, "second", {0: 1.0}, {**DEVICE, "name": "another"})
    with pytest.raises(ValueError, match="made up and name another"):
        device_study.report(tmp_path)
    with pytest.raises(ValueError, match="got none"):
        device_study.report(tmp_path / "none")


def test_what_is_measured_is_not_measured_again_and_more_rounds_are_added(tmp_path):
    device_study.measure(tmp_path, "cpu", range(1), "first", rounds=1)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    device_study.measure(tmp_path, "cpu", range(1), "first", rounds=1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    assert set(first) == {"first_prefill.json", "first_decode.json"}
    device_study.measure(tmp_path, "cpu", range(1), "first", rounds=2)
    one, two = Profile.load(tmp_path / "first_decode.json").models
    assert (one["session"], two["session"]) == (0, 1) and one["hash"] == two["hash"]
    middle = device_study.middles(Profile.load(tmp_path / "first_decode.json"))[one["hash"]]
    assert middle["ms"] == pytest.approx((one["median_ms"] + two["median_ms"]) / 2)


def test_costs_are_timed():
    found = bench_cost.measure(candidates=5)
    assert found["candidates"] == 5 and found["cost"]["ms"] > 0 and found["workload"]["low"] > 0
