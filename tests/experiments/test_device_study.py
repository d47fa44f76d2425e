"""The study of a device: what it makes of measurements, and that it goes on where it was stopped."""

import json

import pytest
from bodyplan.experiments import bench_cost, device_study
from bodyplan.experiments.bench_candidate import LENGTH, design_space

MACHINE = {"name": "made up", "torch": "0", "load": 0.0}


def line(run, number, ms, machine=MACHINE):
    return {"run": run, "number": number, "machine": machine,
            **{phase: {"ms": ms, "low": ms, "high": ms, "noisy": ""} for phase in device_study.PHASES}}


def written(folder, lines):
    (folder / device_study.FILE).write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


def test_ranks_of_two_processes_are_compared(tmp_path):
    lines = [line("first", n, 1.0 + n) for n in range(10)] + [line("second", n, 1.1 * (1.0 + n)) for n in range(10)]
    found = device_study.report(written(tmp_path, lines))["decode"]
    assert found["measured twice"] == 10 and found["spearman"] == pytest.approx(1.0)
    assert found["median change"] == pytest.approx(0.1) == found["largest change"]


def test_predictors_are_held_to_what_they_did_not_see(tmp_path):
    space = design_space()
    lines = [line("all", n, 1e-6 * space.sample(n).cost(LENGTH).decode_macs) for n in range(80)]
    found = device_study.report(written(tmp_path, lines), "additive")["prefill"]
    assert found["candidates"] == 80 and found["fitted on"] == 40
    mean, low, high = found["within 10 %"]
    assert 0 < low <= mean <= high <= 1 and 0.75 < found["held by 90 % intervals"][0] <= 1


def test_measurements_of_two_machines_are_not_mixed(tmp_path):
    written(tmp_path, [line("first", 0, 1.0), line("second", 0, 1.0, {**MACHINE, "name": "another"})])
    with pytest.raises(ValueError, match="another, made up"):
        device_study.report(tmp_path)
    with pytest.raises(ValueError, match="got none"):
        device_study.report(tmp_path / "none")


def test_what_is_measured_is_not_measured_again(tmp_path):
    device_study.measure(tmp_path, "cpu", range(1), "first")
    first = (tmp_path / device_study.FILE).read_text()
    device_study.measure(tmp_path, "cpu", range(1), "first")
    assert (tmp_path / device_study.FILE).read_text() == first and len(first.splitlines()) == 1
    assert all(json.loads(each)["decode"]["ms"] > 0 for each in first.splitlines())


def test_costs_are_timed():
    found = bench_cost.measure(candidates=5)
    assert found["candidates"] == 5 and found["cost"]["ms"] > 0 and found["workload"]["low"] > 0
