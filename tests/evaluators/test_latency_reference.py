"""The reference beside a measurement: what a machine whose speed moves does to a number, and that it no longer does."""

import itertools
import json
import random

import bodyplan as bp
import torch
from bodyplan.evaluators.latency import reference
from bodyplan.evaluators.latency.clock import at_usual_speed, between, repeated
from bodyplan.evaluators.latency.probe import LatencyProbe
from bodyplan.evaluators.latency.reference import Reference, reference_for
from bodyplan.evaluators.latency.runner import Case, Conditions, profile_document

CPU = torch.device("cpu")


class Machine:
    """A machine whose speed wanders slowly between a half and one and a half, with a little jitter of its own per call."""

    def __init__(self, seed):
        self.random, self.speed = random.Random(seed), 1.0

    def timer(self, usual_ms):
        def timed():
            self.speed = min(1.5, max(0.5, self.speed * (1 + self.random.gauss(0, 0.03))))
            return usual_ms / self.speed * (1 + 0.01 * self.random.random())
        return timed


def test_a_machine_whose_speed_wanders_gives_the_number_of_its_usual_speed():
    corrected, clocked = [], []
    for seed in range(20):
        machine = Machine(seed)
        machine.speed = 0.6 + 0.04 * seed
        found = repeated(machine.timer(10.0), 200, reference=Reference(1.5, machine.timer(1.5)))
        corrected.append(found.median_ms)
        clocked.append(found.clock_ms)
        assert found.low_ms <= found.median_ms <= found.high_ms
    assert max(corrected) / min(corrected) < 1.08
    assert max(clocked) / min(clocked) > 1.3


def test_a_machine_at_its_usual_speed_gives_what_the_clock_says():
    found = repeated(lambda: 8.0, 100, reference=Reference(2.0, lambda: 2.0))
    assert (found.median_ms, found.low_ms, found.high_ms) == (8.0, 8.0, 8.0)
    assert found.clock_ms == 8.0 and found.speed == 1.0 and not found.noisy
    assert "the machine ran at 1.00 of it: 8 ms by the clock" in found.note


def test_half_the_speed_is_told_and_taken_out():
    found = repeated(lambda: 16.0, 100, reference=Reference(2.0, lambda: 4.0))
    assert found.median_ms == 8.0 and found.speed == 0.5 and found.clock_ms == 16.0


def test_short_calls_are_repeated_between_two_runs_of_the_reference_and_all_count():
    references = itertools.count()
    groups = list(between(lambda: 0.5, Reference(1.0, lambda: 1.0 + 0 * next(references)), 20))
    assert {len(times) for _, times in groups} == {4} and len(groups) == 10
    assert next(references) == len(groups) + 1, "neighbouring groups share a run of the reference"
    found = at_usual_speed(groups, 0, True)
    assert found.repeats == 40
    assert len(list(between(lambda: 900.0, Reference(1.0, lambda: 1.0), 20))) == 3


def test_outliers_among_the_calls_are_counted_and_do_not_move_the_median():
    given = itertools.cycle([1.0] * 19 + [30.0])
    found = repeated(lambda: next(given), 200, reference=Reference(1.0, lambda: 1.0))
    assert found.outliers >= 3 and found.slowest_ms == 30.0 and found.median_ms == 1.0


def test_the_usual_time_is_found_once_for_all_processes_and_survives_a_broken_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reference.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(reference, "CALIBRATING_SECONDS", 0.0)
    first = reference._usual_ms(1, lambda: 1.25)
    assert first == 1.25 and reference._usual_ms(1, lambda: 99.0) == 1.25
    assert reference._usual_ms(2, lambda: 3.0) == 3.0, "another number of threads is another speed"
    (file,) = tmp_path.glob("*-reference.json")
    assert sorted(json.loads(file.read_text()).values()) == [1.25, 3.0]
    file.write_text("{broken")
    assert reference._usual_ms(1, lambda: 2.0) == 2.0 and reference._usual_ms(1, lambda: 5.0) == 2.0


def test_without_a_place_for_the_file_the_process_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reference.tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    monkeypatch.setattr(reference, "CALIBRATING_SECONDS", 0.0)
    assert reference._usual_ms(1, lambda: 1.5) == 1.5


def test_a_cpu_has_a_reference_and_other_devices_none():
    assert reference_for(CPU) is reference_for(CPU) and reference_for(CPU).timed() > 0
    assert reference_for(torch.device("cuda:0")) is None


def test_measurements_and_profiles_tell_the_speed(space):
    architecture = space.sample(0)
    found = LatencyProbe(length=8, phase="prefill", budget_ms=2).measured(architecture, architecture.build())
    assert found.speed > 0 and found.clock_ms > 0 and "by the clock" in found.note
    case = Case("linear", 4, lambda: torch.nn.Linear(4, 4))
    document = profile_document([case], [Conditions(length=4, budget_ms=1)], "cpu")
    assert document["sessions"][0]["reference_ms"] == reference_for(CPU).usual_ms
    assert document["operators"][0]["speed"] > 0
    assert bp.Profile.from_json(document).operators[0]["clock_ms"] > 0
