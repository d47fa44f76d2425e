"""What a sweep would take: seconds that workers share and seconds that take turns, memory of every process, and limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import bodyplan as bp
import cloudpickle
import pytest
from bodyplan.search import estimating, rehearsal
from bodyplan.search.estimating import Training, pace
from bodyplan.search.executors.ray import RayExecutor
from bodyplan.search.rehearsal import Memory, Rehearsal, own_memory, rehearse

MB = 1_000_000
cloudpickle.register_pickle_by_value(sys.modules[__name__])                 # workers cannot import a test


def slow(architecture):
    time.sleep(0.05)
    return 1.0


def heavy(architecture):
    """300 MB beside the largest candidate, which has three layers."""
    kept = bytearray(300 * MB) if len(architecture.plan.layers) == 3 else b""
    return 1.0 + sum(kept[:: 4096]) + architecture.cost().parameters


def objectives(call, **more):
    return [bp.Objective("x", evaluate=call, **more), "parameters"]


@pytest.fixture
def rehearsed(monkeypatch):
    """Has `dry_run` take what a rehearsal would have found: `rehearsed(seconds=2.0, alone=1.0)`."""
    def give(**found):
        monkeypatch.setattr("bodyplan.search.forecast.rehearse", lambda sweep, weights: Rehearsal(**found))
    return give


def test_what_is_measured_alone_is_timed_apart(sweep_in):
    timed = rehearse(sweep_in("a", objectives=objectives(slow, device="cpu")), None)
    assert timed.seconds >= timed.alone >= 0.05 and timed.scoring == 0 and not timed.failures
    assert rehearse(sweep_in("b", objectives=objectives(slow)), None).alone == 0


@pytest.mark.parametrize(("found", "workers", "expected"), [
    ({"seconds": 6.0}, 3, 2.0),                                         # all of it in parallel
    ({"seconds": 6.0, "alone": 1.0}, 3, 2.0),                           # turns fit beside the others' training
    ({"seconds": 6.0, "alone": 4.0}, 3, 4.0),                           # the machine is never free
    ({"seconds": 6.0, "alone": 2.0, "scoring": 3.0}, 3, 3.0),           # scoring waits for those that measure
    ({"seconds": 6.0, "alone": 2.0, "scoring": 3.0}, 1, 6.0),
])
def test_workers_divide_only_what_runs_in_parallel(found, workers, expected):
    assert pace(Rehearsal(**found), workers) == expected


def test_the_whole_is_every_evaluation_at_that_pace(sweep_in, rehearsed):
    rehearsed(seconds=6.0, alone=4.0, start=5.0)
    sweep = sweep_in("run", executor="local", workers=3, trials=30)
    assert sweep.dry_run().seconds == 5 + 30 * 4
    assert sweep_in("twin", executor="local", workers=3, trials=30, twin=True).dry_run().seconds == 5 + 2 * 30 * 4
    probed = sweep_in("probed", executor="local", workers=3, trials=30, reference=[20.0, None]).dry_run()
    assert probed.seconds == 5 + (5 + 30) * 4
    assert "4.0 s of it alone on the machine, 3 at a time" in str(probed)
    assert sweep_in("all", executor="local", workers=3, trials=10**9).dry_run().seconds == 5 + sweep.space.size() * 4


def test_hours_bound_the_search_and_not_what_follows_it(sweep_in, rehearsed):
    rehearsed(seconds=3.0)
    assert sweep_in("run", trials=5000, hours=0.1).dry_run().seconds == 360
    assert sweep_in("twin", trials=5000, hours=0.1, twin=True).dry_run().seconds > 360
    assert sweep_in("open", trials=None, hours=0.1).dry_run().seconds is None


@pytest.mark.long
def test_a_worker_holds_what_the_largest_candidate_takes(sweep_in):
    found = sweep_in("run", executor="local", workers=2, objectives=objectives(heavy)).dry_run()
    assert 0.4 < found.worker_gb < 1.2                                      # torch beside what the objective takes
    assert found.driver_gb + 2 * 0.3 < found.memory_gb < found.driver_gb + 2 * found.worker_gb      # libraries count once
    assert found.gpu_gb is None and not found.warnings and "at most in a process that evaluates" in str(found)


def test_a_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    program = ("from bodyplan.search.rehearsal import own_memory; import subprocess, sys; "
               "kept = bytearray(b'x') * 400_000_000 if len(sys.argv) == 1 else b''; print(int(own_memory().peak)); "
               "sys.stdout.flush(); len(sys.argv) > 1 or subprocess.run([sys.executable, '-c', sys.orig_argv[2], 'child'])")
    parent, child = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert parent > 400 * MB > child > 10 * MB


def test_inline_everything_is_this_process_and_mlflow_where_it_is_told(sweep_in):
    found, tracked = sweep_in("run").dry_run(), sweep_in("tracked", tracking=True).dry_run()
    assert found.workers == 1 and found.memory_gb == found.driver_gb == pytest.approx(own_memory().peak / 1e9 + 0.05, rel=0.1)
    assert tracked.memory_gb - found.memory_gb == pytest.approx(0.24, abs=0.05)


def test_limits_that_are_too_low_are_named(sweep_in, rehearsed, monkeypatch):
    rehearsed(seconds=1.0, memory=Memory(2e9, 0.2e9))
    monkeypatch.setattr(estimating, "machine_bytes", lambda: 4e9)
    limited = sweep_in("a", executor="local", workers=4, memory_gb=1.5).dry_run()
    assert limited.memory_gb > 4 * 1.8 and len(limited.warnings) == 2
    text = str(limited)
    assert "warning: the largest candidate takes 2.00 GB of a worker, and memory_gb=1.5 stops those that take more" in text
    assert "GB are more than the 4.0 GB of this machine" in text
    assert not sweep_in("b", executor="local", workers=1, memory_gb=3).dry_run().warnings


def test_gpu_memory_is_that_of_all_workers_on_it(sweep_in, monkeypatch):
    sweep = sweep_in("run", executor="local", workers=3)
    monkeypatch.setattr(estimating, "gpu_bytes", lambda device: 5e9)
    trained, tried = Training(memory=Memory(1e9, 0, 7e9)), Rehearsal(1.0, memory=Memory(1e9, 0, 2e9))
    assert estimating.gpu_estimate(sweep, Training(), tried, 3) == 6e9
    assert estimating.gpu_estimate(sweep, trained, tried, 3) == 7e9
    assert estimating.gpu_estimate(sweep, Training(), replace(tried, memory=Memory(1e9, 0)), 3) is None
    assert "6.0 GB are more than the 5.0 GB of cpu" in estimating.warnings_of(sweep, None, 0, 6e9)[0]
    on_ray = sweep_in("ray", executor=RayExecutor(workers=4, gpus=0.5))
    assert estimating.gpu_estimate(on_ray, Training(), tried, 4) == 4e9
    assert rehearsal.gpu_peak("cpu") is None


def test_a_supernets_weights_are_handed_to_every_worker(sweep_in):
    import numpy as np

    sweep = sweep_in("run", executor="local", workers=2)
    tried = Rehearsal(1.0, memory=Memory(1e9, 0.25e9))
    (driver, bare), (_, holding) = (estimating.memory_estimate(sweep, Training(weights), tried, 2)
                                    for weights in (None, {"w": np.zeros(10**7)}))
    assert bare == pytest.approx(driver + 2 * 0.75e9, rel=0.01) and holding - bare == pytest.approx(8e7, abs=3e7)
    training = estimating.memory_estimate(sweep, Training(memory=Memory(9e9, 0.25e9)), tried, 2)
    assert training[1] == 9e9                                               # more than the search takes


def test_failed_evaluations_are_told_and_counted(sweep_in):
    def fails(architecture):
        raise ValueError("no such thing")

    found = sweep_in("run", objectives=objectives(fails)).dry_run()
    assert found.failures == ("ValueError: no such thing",) * 2 and found.seconds > 0
    assert json.loads(json.dumps(found.to_json()))["failures"] == list(found.failures)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["brief-1", "brief-2"])
def test_a_run_takes_the_memory_that_was_forecast(case, record_property):
    from bodyplan.experiments.bench_forecast import measure

    found = measure([case])["cases"][case]
    for name in ("seconds_ratio", "memory_ratio"):
        record_property(name, found[name])
    assert 0.75 < found["memory_ratio"] < 1.33 and found["seconds_ratio"] > 0
