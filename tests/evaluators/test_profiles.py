"""Profiles: JSON that round-trips, merges for one device only, and answers with what it knows and says what it guesses."""

import copy
import json
import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.latency import runner
from bodyplan.evaluators.latency.measuring import conditions_of, profile_models, profile_operators
from bodyplan.evaluators.latency.operators import case_of
from bodyplan.evaluators.latency.profile import Profile, shipped_profiles
from bodyplan.evaluators.latency.runner import Case, Conditions, fill, measure_case, profile_document
from torch import nn

DEVICE = {"kind": "cpu", "name": "Slow 1", "cores": 2, "machine": "x86_64"}


def row(operator="SwiGLU()", length=64, median=1.0, session=0, **other):
    return {"operator": operator, "width": 32, "batch": 1, "length": length, "phase": "prefill", "dtype": "float32",
            "mode": "eager", "threads": 1, "session": session, "median_ms": median, "low_ms": 0.9 * median,
            "high_ms": 1.1 * median, "repeats": 50, "outliers": 0, **other}


def document(*rows, device=DEVICE, started="2026-01-01"):
    return {"schema": "bodyplan.profile", "schema_version": 1, "device": device,
            "sessions": [{"started": started, "fingerprint": {"torch": "2.13"}}], "operators": list(rows), "models": [],
            "failures": []}


def profile(*rows, **options):
    return Profile.from_json(document(*rows, **options))


def test_a_measured_profile_round_trips_through_its_file(tmp_path):
    heard = []
    made = profile_operators(operators=[bp.ShortConv(kernel=3), bp.MLP()], widths=(8, 16),
                             conditions=conditions_of((4, 8), budget_ms=1), command="a test", told=heard.append)
    assert len(made.operators) == 2 * 2 * 2 * 2 == len(heard)
    one = made.operators[0]
    assert one["low_ms"] <= one["median_ms"] <= one["high_ms"] and one["repeats"] >= 3 and "energy_mj" not in one
    assert made.sessions[0]["command"] == "a test" and made.sessions[0]["fingerprint"]["torch"] == torch.__version__
    path = made.save(tmp_path / "mine.json")
    assert Profile.load(path) == made and bp.Profile is Profile
    assert len(path.read_text().splitlines()) < 40, "one row a line"
    answer = made.latency(bp.ShortConv(kernel=3), 8, length=4, phase="decode")
    assert answer.low <= answer.value <= answer.high and not answer.extrapolated
    made.check_here("cpu")


def test_saving_overwrites_nothing_unless_told(tmp_path):
    path = profile(row()).save(tmp_path / "p.json")
    with pytest.raises(ValueError, match="overwrites nothing.*overwrite=True"):
        profile(row(median=2.0)).save(path)
    assert Profile.load(path).operators[0]["median_ms"] == 1.0
    profile(row(median=2.0)).save(path, overwrite=True)
    assert Profile.load(path).operators[0]["median_ms"] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_merging_keeps_every_row_once_and_the_latest_session_answers():
    old, new = profile(row(), row(length=128)), profile(row(median=3.0), started="2026-06-01")
    for merged in (old.merge(new), new.merge(old), old.merge(new, old).merge(new)):
        assert len(merged.operators) == 3 and len(merged.sessions) == 2
        assert merged.latency("SwiGLU()", 32, length=64).value == 3.0
        assert Profile.from_json(merged.to_json()) == merged
    assert old.merge(old) == old
    assert len(old.operators) == 2, "a merge makes a new profile"


def test_a_quiet_measurement_answers_before_a_later_noisy_one_and_compacting_keeps_the_answers():
    first = profile(row(median=1.0), row(length=128, median=1.0, noisy="wide"), started="2026-01-01")
    second = profile(row(median=2.0, noisy="wide"), row(length=128, median=2.0, noisy="wide"), started="2026-02-01")
    third = profile(row(operator="MLP()", median=7.0), started="2026-03-01")
    merged = first.merge(second, third)
    assert [merged.latency("SwiGLU()", 32, length=n).value for n in (64, 128)] == [1.0, 2.0]
    small = merged.compact()
    assert len(merged.operators) == 5 and len(small.operators) == 3 and len(small.sessions) == 3
    for label, length in (("SwiGLU()", 64), ("SwiGLU()", 128), ("SwiGLU()", 99), ("MLP()", 64)):
        assert small.latency(label, 32, length=length) == merged.latency(label, 32, length=length)
    alone = first.merge(profile(row(median=3.0), row(length=128, median=3.0), started="2026-05-01")).compact()
    assert [one["session"] for one in alone.operators] == [0, 0] and alone.sessions[0]["started"] == "2026-05-01"
    assert Profile.from_json(small.to_json()) == small == small.compact()


@pytest.mark.parametrize(("key", "value"), [("name", "Fast 2"), ("cores", 8), ("kind", "cuda"), ("machine", "aarch64")])
def test_profiles_of_two_devices_do_not_merge(key, value):
    other = profile(row(), device={**DEVICE, key: value})
    with pytest.raises(ValueError, match=f"profiles of one device merge: got name Slow 1.*{value}.*keep a profile for each"):
        profile(row()).merge(other)


def test_a_profile_of_another_machine_is_told_from_this_one():
    with pytest.raises(ValueError, match="numbers of one device are compared, here with 'cpu': got name Slow 1"):
        profile(row()).check_here("cpu")


def test_between_measured_lengths_a_power_law_answers_and_says_so():
    found = profile(row(length=64, median=1.0), row(length=256, median=16.0)).latency("SwiGLU()", 32, length=128)
    assert found.interpolated and not found.extrapolated and math.isclose(found.value, 4.0)
    assert found.low < found.value < found.high and "between 64 and 256" in found.note


@pytest.mark.parametrize(("length", "value"), [(1024, 256.0), (16, 0.0625)])
def test_beyond_measured_lengths_the_answer_is_flagged_and_its_interval_wide(length, value):
    found = profile(row(length=64, median=1.0), row(length=256, median=16.0)).latency("SwiGLU()", 32, length=length)
    assert found.extrapolated and math.isclose(found.value, value)
    assert found.low < 0.6 * value and found.high > 1.9 * value
    assert f"{length} tokens lie beyond the 64 to 256 tokens" in found.note


def test_one_measured_length_tells_little_about_others():
    found = profile(row(length=64, median=1.0)).latency("SwiGLU()", 32, length=256)
    assert found.extrapolated and found.low <= 1.0 and found.high >= 64 and found.value == 4.0


def test_constant_latencies_stay_constant_beyond_what_was_measured():
    steady = profile(*(row(length=n, median=2.0) for n in (64, 128)))
    assert steady.latency("SwiGLU()", 32, length=96).value == pytest.approx(2.0)
    assert steady.latency("SwiGLU()", 32, length=512).value == pytest.approx(2.0)
    nothing = profile(*(row(length=n, median=0.0) for n in (64, 128)))
    assert nothing.latency("SwiGLU()", 32, length=96).value == 0.0


def test_noise_is_passed_on():
    loud = profile(row(noisy="the interval is 40 % of the median wide"), row(length=256))
    near, between, far = (loud.latency("SwiGLU()", 32, length=n) for n in (64, 128, 256))
    assert near.noisy and "noisy: the interval" in near.note
    assert between.noisy and not far.noisy


@pytest.mark.parametrize(("asked", "word"), [
    (dict(operator="SwiGlu()"), r"did you mean 'SwiGLU\(\)'"),
    (dict(width=48), "with width 32 only: got 48; measure it with"),
    (dict(phase="decode"), "with phase prefill only"), (dict(dtype="float16"), "with dtype float32 only"),
    (dict(length=0), "length is a number of tokens of at least 1: got 0")])
def test_what_was_not_measured_is_answered_with_what_was(asked, word):
    with pytest.raises(ValueError, match=word):
        profile(row(), row(length=128)).latency(**{"operator": "SwiGLU()", "width": 32, "length": 64, **asked})


def broken(change):
    made = copy.deepcopy(document(row()))
    change(made)
    return made


@pytest.mark.parametrize(("change", "word"), [
    (lambda d: d.update(schema="other"), '"schema": "bodyplan.profile" at FILE: got \'other\''),
    (lambda d: d.update(schema_version=99), "up to schema_version 1 at FILE: got 99.*update bodyplan"),
    (lambda d: d.update(schema_version="1"), "whole number from 1"),
    (lambda d: d.update(device={"kind": "cpu"}), "device's kind and name"),
    (lambda d: d.update(operators={}), "operators of a profile are a list of objects"),
    (lambda d: d["operators"][0].update(median_ms=float("nan")), r"finite.*operators\[0\] of FILE: got \[0.9, nan, 1.1\]"),
    (lambda d: d["operators"][0].update(low_ms=5.0), "in order"),
    (lambda d: d["operators"][0].update(high_ms=None), "in order"),
    (lambda d: d["operators"][0].update(width=0), "width is a whole number of at least 1"),
    (lambda d: d["operators"][0].pop("operator"), "a row has its operator"),
    (lambda d: d["operators"][0].update(phase="sleep"), "phase is one of decode, prefill, train"),
    (lambda d: d["operators"][0].update(session=1), "one of the 1 sessions")])
def test_a_wrong_document_is_refused_with_the_row_and_what_to_do(change, word):
    with pytest.raises(ValueError, match=word):
        Profile.from_json(broken(change), "FILE")


def test_files_that_are_none_are_answered(tmp_path):
    with pytest.raises(FileNotFoundError, match="bodyplan profile cpu --save"):
        Profile.load(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text(json.dumps(document(row()))[:50])
    with pytest.raises(ValueError, match="cut.json cannot be read.*cut short"):
        Profile.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="got 'list'"):
        Profile.load(tmp_path / "list.json")
    with pytest.raises(ValueError, match="unknown profile 'my_phone'"):
        Profile.load("my_phone")


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_loads_and_says_how_it_was_measured(name):
    found = Profile.load(name)
    assert found.operators and all(session["command"].startswith("bodyplan profile") for session in found.sessions)
    assert all({"torch", "threads", "load"} <= set(session["fingerprint"]) for session in found.sessions)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_shipped_profile_knows_every_operator_of_the_first_sweep(phase):
    from bodyplan.experiments.first_sweep import space

    device = bp.Device.from_profile("amd_epyc_2_cores")
    for seed in range(5):
        found = device.estimate(space().sample(seed), phase, length=128)
        assert 0 < found.low <= found.value <= found.high and "extrapolated" not in found.note


def test_whole_models_are_measured_with_genome_and_features(space):
    made = profile_models([space.sample(0), space.sample(1)], under=Conditions(length=8, budget_ms=1))
    assert [m["hash"] for m in made.models] == [space.sample(0).hash, space.sample(1).hash]
    assert made.models[0]["features"]["parameters"] == space.sample(0).cost(8).parameters
    assert space.architecture(bp.Genome.from_json(made.models[1]["genome"])).hash == space.sample(1).hash
    assert Profile.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(("arguments", "word"), [
    (dict(device="cuda:99"), "not on this machine"),
    (dict(operators=[bp.Attention(heads=3)], widths=(8,)), "profile, Attention"),
    (dict(operators=[bp.CrossAttention()]), "which reads a second sequence"),
    (dict(operators=[bp.TokenEmbedding(vocab=4)]), "of kind embedding"),
    (dict(conditions=[Conditions(), Conditions(phase="sleep")]), "phase of a latency must be"),
    (dict(conditions=[Conditions(mode="graph")]), "on CUDA devices only"),
    (dict(pairs=[]), "measures something: got 0 operators"), (dict(conditions=[]), "and 0 conditions"),
    (dict(conditions=[Conditions(length=0)]), "length of a latency must be at least 1")])
def test_mistakes_are_answered_before_anything_is_measured(monkeypatch, arguments, word):
    monkeypatch.setattr(runner, "measure_case", lambda *_: pytest.fail("it measured"))
    with pytest.raises(ValueError, match=word):
        profile_operators(**arguments)


def test_a_case_that_torch_cannot_run_is_a_failure_with_its_reason_and_the_others_go_on():
    def fails():
        raise torch.OutOfMemoryError("tried to allocate 80 GiB\nmore text")

    def refuses():
        raise ValueError("heads must divide width")

    cases = [Case("Large()", 4, fails), Case("Odd()", 4, refuses), Case("Linear()", 4, lambda: nn.Linear(4, 4))]
    made = profile_document(cases, [Conditions(length=2, budget_ms=1)], "cpu")
    assert [(one["operator"], one["reason"]) for one in made["failures"]] == [
        ("Large()", "tried to allocate 80 GiB"), ("Odd()", "heads must divide width")]
    assert [one["operator"] for one in Profile.from_json(made).operators] == ["Linear()"]


def test_conditions_given_once_through_an_iterator_all_count():
    made = profile_document([Case("Linear()", 4, lambda: nn.Linear(4, 4))],
                            iter(conditions_of((2, 3), phases=("prefill",), budget_ms=1)), "cpu")
    assert [one["length"] for one in made["operators"]] == [2, 3] and made["sessions"][0]["budget_ms"] == 1


def test_what_has_no_state_decodes_a_token_alone_and_what_looks_both_ways_does_not():
    shapes = []

    class Seen(nn.Identity):
        def forward(self, x):
            shapes.append(tuple(x.shape))
            return x

    under = Conditions(batch=2, length=12, phase="decode", budget_ms=1)
    assert measure_case(Case("Seen()", 4, Seen, tokenwise=True), under, torch.device("cpu")).median_ms >= 0
    assert set(shapes) == {(2, 1, 4)}
    assert measure_case(Case("Seen()", 4, Seen), under, torch.device("cpu")) is None
    assert case_of(bp.MLP(), 4).tokenwise and not case_of(bp.Attention(heads=2, bidirectional=True), 4).tokenwise


def test_operators_of_grids_get_grids():
    shapes = []

    class Seen(nn.Identity):
        def forward(self, x):
            shapes.append(tuple(x.shape))
            return x

    measure_case(Case("Seen()", 4, Seen, grid=True), Conditions(batch=2, length=12, budget_ms=1), torch.device("cpu"))
    assert set(shapes) == {(2, 3, 4, 4)}


def test_unwritten_parameters_become_usual_numbers_and_written_ones_stay():
    module = nn.Linear(4, 4)
    module.gain = nn.Parameter(torch.tensor([1e-40, float("nan"), 2.0, 1e30]))
    fill(module)
    assert module.gain.tolist() == [0.0, 0.0, 2.0, 0.0] and 0.1 < module.weight.std() < 1.0
