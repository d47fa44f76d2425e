"""`bodyplan fidelity` and `Sweep.measure_fidelity`: what they train, what they never train twice, what they say."""

import bodyplan as bp
import pytest
import torch
from bodyplan import cli
from bodyplan.errors import BodyplanError
from bodyplan.search.results import Results
from bodyplan.search.summary import fidelity_lines
from typer.testing import CliRunner

STUDY = """
import bodyplan as bp

space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                 body=bp.repeat(bp.Block(mixer=bp.ShortConv(kernel=bp.choice(2, 3, 4)),
                                         channel=bp.MLP(ratio=bp.choice(1, 2))), times=bp.integer(1, 2)),
                 head=bp.LanguageHead(tied=True))

def sweep(**more):
    given = {"trials": 10, "supernet": True, "supernet_steps": 3, "steps": 2, "retrain": 1, "fidelity_sample": 4,
             "executor": "inline", "tracking": False, "quiet": True, "objectives": ["loss", "parameters"],
             "supernet_strategy": "single_path", **more}
    return bp.Sweep(space, bp.tasks.text(length=8, batch=1, held_out_batches=2), given.pop("objectives"), **given)
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made(tmp_path):
    """Makes sweeps that train in milliseconds: `made(trials=...)`."""
    known = {}
    exec(STUDY, known)
    return lambda **more: known["sweep"](**{"directory": tmp_path / "run", **more})


def events(sweep, kind):
    with bp.Journal.open(sweep.directory) as journal:
        return [event.body for event in journal.events(kind)]


def test_a_larger_sample_and_a_second_seed_train_what_is_missing_and_are_recorded(made):
    sweep = made()
    sweep.run()
    before, first = events(sweep, "standalone"), events(sweep, "fidelity")[-1]
    body = sweep.measure_fidelity(candidates=6, seeds=2)
    runs = {(event["number"], event["replicate"]): event for event in events(sweep, "standalone")}
    assert events(sweep, "standalone")[:len(before)] == before and len(runs) == len(events(sweep, "standalone"))
    assert set(first["numbers"]) <= set(body["numbers"]) and body["count"] == 6
    assert body["standalone"] == [runs[number, 0]["values"]["loss"] for number in body["numbers"]]
    assert body["again"] == [runs[number, 1]["values"]["loss"] for number in body["numbers"]]
    assert runs[body["numbers"][0], 0]["seed"] != runs[body["numbers"][0], 1]["seed"]
    assert body["ceiling"]["count"] == 6 and set(body["proxies"]) == {"parameters", "macs"}
    assert [regret["k"] for regret in body["regret"]] == [1, 5]
    assert Results.read(sweep.directory).last("fidelity") == events(sweep, "fidelity")[-1]
    assert (sweep.directory / "report.html").read_text().count("another standalone seed") == 1


def test_asking_again_trains_nothing_and_a_resume_keeps_the_larger_measurement(made):
    sweep = made()
    sweep.run()
    asked = sweep.measure_fidelity(candidates=6, seeds=2)
    counts = [len(events(sweep, kind)) for kind in ("standalone", "fidelity")]
    assert sweep.measure_fidelity(candidates=6, seeds=2)["numbers"] == asked["numbers"]
    sweep.run(resume=True)
    assert [len(events(sweep, kind)) for kind in ("standalone", "fidelity")] == counts


def test_an_interrupted_measurement_goes_on_to_the_same_answer(made, tmp_path, monkeypatch):
    whole, sweep = made(directory=tmp_path / "whole"), made()
    whole.run()
    sweep.run()
    append = bp.Journal.append

    def interrupting(journal, kind, body, stream="search"):
        number = append(journal, kind, body, stream)
        if kind == "standalone" and body["replicate"] == 1:
            raise KeyboardInterrupt
        return number

    monkeypatch.setattr(bp.Journal, "append", interrupting)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep.measure_fidelity(seeds=2)
    assert [event["replicate"] for event in events(sweep, "standalone")].count(1) == 3
    monkeypatch.setattr(bp.Journal, "append", append)
    assert sweep.measure_fidelity(seeds=2) == whole.measure_fidelity(seeds=2)
    assert len(events(sweep, "standalone")) == len(events(whole, "standalone"))


def test_other_steps_leave_what_the_front_says_of_the_sweeps_own_training_alone(made):
    sweep = made()
    front = sweep.run()
    best = front.best(1)[0]
    body = sweep.measure_fidelity(candidates=10, steps=3, seeds=2)
    assert body["steps"] == 3 and best.number in body["numbers"]
    again = {point.number: point for point in sweep.front()}[best.number]
    assert again.standalone == best.standalone
    assert sweep.task.score(again.module("standalone")) == pytest.approx(best.standalone["loss"], rel=1e-5)


def test_a_sweep_that_trains_every_candidate_is_measured_against_longer_training(made):
    sweep = made(supernet=False, trials=5)
    sweep.run()
    with pytest.raises(BodyplanError, match="for 2 steps already; give other steps"):
        sweep.measure_fidelity()
    body = sweep.measure_fidelity(candidates=3, steps=4)
    with bp.Journal.open(sweep.directory) as journal:
        scores = {trial.number: trial.values["loss"] for trial in journal.trials("search")}
    assert body["inherited"] == [scores[number] for number in body["numbers"]] and body["count"] == 3


def test_candidates_that_fail_alone_are_left_out_and_two_are_too_few(made, monkeypatch):
    from bodyplan.evaluators.evaluation import Evaluator

    sweep = made()
    sweep.run()
    standalone = Evaluator._standalone
    small = sorted(event["number"] for event in events(sweep, "standalone"))[0]
    with bp.Journal.open(sweep.directory) as journal:
        hopeless = {trial.genome for trial in journal.trials() if trial.number != small}

    def failing(self, job, architecture):
        if job.genome in hopeless:
            raise ValueError("diverged")
        return standalone(self, job, architecture)

    monkeypatch.setattr(Evaluator, "_standalone", failing)
    with pytest.raises(BodyplanError, match="at least three candidates"):
        sweep.measure_fidelity(steps=5, candidates=4)


@pytest.mark.parametrize(("asked", "said"), [({"candidates": 2}, "at least 3: got 2"), ({"steps": 0}, "at least 1: got 0"),
                                             ({"seeds": 3}, "seeds is 1, or 2 to measure the ceiling: got 3")])
def test_numbers_out_of_range_are_answered_before_anything_is_opened(made, asked, said):
    with pytest.raises(ValueError, match=said):
        made().measure_fidelity(**asked)


def test_a_sweep_without_a_trained_metric_has_no_fidelity(made):
    sweep = made(objectives=["parameters", "macs"], supernet=False)
    sweep.run()
    with pytest.raises(BodyplanError, match="none of this sweep's objectives is its task's"):
        sweep.measure_fidelity(steps=3)


def test_the_command_prints_what_is_recorded_and_measures_what_is_asked(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(STUDY + f"\n\nsmall = sweep(directory={str(tmp_path / 'run')!r})\n")
    from bodyplan.search.launch import load_sweep

    sweep = load_sweep(f"{file}:small")
    sweep.run()
    counted = len(events(sweep, "standalone"))
    recorded = CliRunner().invoke(cli.app, ["fidelity", str(tmp_path / "run")]).output
    assert "4 candidates, 2 steps each, one seed" in recorded and "macs" in recorded and "lost by training" in recorded
    assert len(events(sweep, "standalone")) == counted
    asked = CliRunner().invoke(cli.app, ["fidelity", str(tmp_path / "run"), "--candidates", "8", "--seeds", "2"]).output
    assert "8 candidates, 2 steps each, first of two seeds" in asked
    assert "ceiling, one standalone seed against another" in asked
    assert "within 2 bins of equal parameters" in asked
    assert CliRunner().invoke(cli.app, ["fidelity", str(tmp_path / "run")]).output == asked


def test_the_command_says_what_to_do_with_a_sweep_that_only_python_can_build(made):
    sweep = made()
    sweep.run()
    assert CliRunner().invoke(cli.app, ["fidelity", str(sweep.directory)]).exit_code == 0
    failed = CliRunner().invoke(cli.app, ["fidelity", str(sweep.directory), "--seeds", "2"])
    assert isinstance(failed.exception, BodyplanError) and "sweep.measure_fidelity()" in str(failed.exception)


def test_an_old_measurement_without_the_newer_statistics_still_prints():
    old = {"objective": "loss", "tau": 0.5, "low": 0.1, "high": 0.8, "count": 12, "steps": 144, "spearman": 0.6,
           "proxies": {"parameters": {"tau": 0.4, "low": 0.0, "high": 0.7}}}
    assert len(fidelity_lines(old)) == 2
