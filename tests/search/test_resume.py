"""A sweep that dies is continued: to its budget, without repeating anything finished, to the very same trials."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.resume import seconds_spent

SCRIPT = textwrap.dedent("""
    import pathlib, sys, time
    sys.path.insert(0, {tests!r})
    import conftest
    import bodyplan as bp

    directory = pathlib.Path(sys.argv[1])

    def slow_loss(architecture):
        with open(directory.parent / f"calls-{{directory.name}}", "a") as calls:
            calls.write(architecture.hash + "\\n")
        time.sleep(0.004)
        return conftest.pseudo_loss(architecture)

    sweep = conftest.make_sweep(directory, objectives=[bp.Objective("loss", evaluate=slow_loss), "parameters"],
                                strategy={strategy!r}, trials=60, order={order!r}, in_flight=4, twin=True)
    sweep.run(resume="--resume" in sys.argv)
""")


@pytest.fixture
def run(tmp_path):
    """Runs the script as a process of its own; with `kill_after`, kill -9 after that many journalled results."""
    def start(name, *options, strategy="evolution", order="ask", kill_after=None):
        script = tmp_path / f"{name}.py"
        script.write_text(SCRIPT.format(tests=os.path.dirname(__file__), strategy=strategy, order=order))
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path / name), *options],
                                   stderr=subprocess.PIPE, text=True)
        if kill_after is not None:
            _wait_for(tmp_path / name, kill_after, process)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if kill_after is not None else 0), errors
        return tmp_path / name
    return start


def _wait_for(directory, results, process):
    """Until the journal holds that many results."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        if (directory / "journal.sqlite").exists():
            with bp.Journal.open(directory) as journal:
                if sum(1 for _ in journal.events("result")) >= results:
                    return
        time.sleep(0.002)
    raise AssertionError(f"it did not come to {results} results")


def _check_completed(directory, trials):
    with bp.Journal.open(directory) as journal:
        results = [event.body["number"] for event in journal.events("result")]
        assert {trial.state for trial in journal.trials()} == {"complete"}
        assert len(journal.trials("search")) == len(journal.trials("twin")) == 60
        assert len(results) == len(set(results)) == 120
        assert journal.last("finished") is not None
    assert len(trials) == 120


def test_kill_9_and_resume_give_the_trials_of_an_uninterrupted_sweep(run, trials_of, tmp_path):
    whole = trials_of(run("whole"))
    directory = run("killed", kill_after=23)
    with bp.Journal.open(directory) as journal:
        finished = {trial.hash for trial in journal.trials() if trial.state == "complete"}
    before = (tmp_path / "calls-killed").read_text().split()
    run("killed", "--resume")
    again = (tmp_path / "calls-killed").read_text().split()[len(before):]
    _check_completed(directory, trials_of(directory))
    assert finished.isdisjoint(again)
    assert trials_of(directory) == whole


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["random", "evolution", "local_search", "optuna:tpe", "optuna:nsga2"])
@pytest.mark.parametrize("order", ["ask", "completion"])
def test_a_sweep_survives_kill_9_at_several_moments(strategy, order, run, trials_of, tmp_path):
    rng = random.Random(f"{strategy} {order}")
    directory = run("killed", strategy=strategy, order=order, kill_after=rng.randrange(1, 25))
    for least in (30, 55, 80, 110):
        run("killed", "--resume", strategy=strategy, order=order, kill_after=least + rng.randrange(8))
    run("killed", "--resume", strategy=strategy, order=order)
    _check_completed(directory, trials_of(directory))
    calls = (tmp_path / "calls-killed").read_text().split()
    assert len(calls) - len(set(calls)) <= 5  # one in flight at each kill
    if order == "ask":
        assert trials_of(directory) == trials_of(run("whole", strategy=strategy, order=order))


def test_a_finished_sweep_resumes_to_the_same_front_and_does_nothing(sweep_in):
    sweep = sweep_in("run")
    front = sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        kinds = [event.kind for event in journal.events()]
    again = sweep.run(resume=True)
    with bp.Journal.open(sweep.directory) as journal:
        assert [event.kind for event in journal.events()] == [*kinds, "session"]
    assert [point.number for point in again] == [point.number for point in front]


def test_candidates_in_flight_when_it_stopped_are_evaluated_first(sweep_in):
    def dies_at_twelve(architecture, calls=[]):  # noqa: B006 - counts the calls
        calls.append(architecture)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        sweep_in("run", objectives=[bp.Objective("x", evaluate=dies_at_twelve)], reference=[2.0], in_flight=4).run()
    directory = sweep_in("run").directory
    with bp.Journal.open(directory) as journal:
        waiting = [trial.number for trial in journal.trials() if trial.state == "running"]
        last = max(event.id for event in journal.events())
    calm = [bp.Objective("x", evaluate=lambda a: 1.0)]
    sweep_in("run", objectives=calm, reference=[2.0], in_flight=4).run(resume=True)
    with bp.Journal.open(directory) as journal:
        after = [event.body["number"] for event in journal.events("result", after=last)]
    assert len(waiting) == 4 and after[:4] == waiting


def test_the_first_ctrl_c_finishes_what_runs_and_the_sweep_can_be_resumed(sweep_in):
    def interrupts(architecture, calls=[]):  # noqa: B006 - counts the calls
        calls.append(architecture)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return float(architecture.plan.width)

    before = signal.getsignal(signal.SIGINT)
    sweep = sweep_in("run", objectives=[bp.Objective("x", evaluate=interrupts)], reference=[99.0], trials=20)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert signal.getsignal(signal.SIGINT) is before
    with bp.Journal.open(sweep.directory) as journal:
        assert sum(trial.state == "complete" for trial in journal.trials()) == 7
    assert len(sweep.run(resume=True).candidates) == 20


def test_time_spent_counts_every_run_but_not_the_pauses(tmp_path, monkeypatch):
    clock = iter([0, 100, 110, 500, 530])
    monkeypatch.setattr("bodyplan.search.journal.time.time", lambda: float(next(clock)))
    with bp.Journal.create(tmp_path / "run") as journal:
        for kind in ("session", "note", "session", "note"):
            journal.append(kind, {})
        assert seconds_spent(journal) == 40


def test_resume_without_a_journal_says_what_to_do(sweep_in):
    with pytest.raises(BodyplanError, match=r"holds no journal.sqlite; call run\(\) to start one"):
        sweep_in("nothing").run(resume=True)


@pytest.mark.parametrize(("change", "word"), [
    ({"seed": 4}, "seed"), ({"strategy": "random"}, "strategy"), ({"objectives": ["parameters", "macs"]}, "objectives"),
    ({"in_flight": 9}, "in_flight"), ({"order": "completion"}, "order")])
def test_resume_of_another_sweep_is_refused_and_names_what_differs(change, word, sweep_in):
    sweep_in("run", trials=3).run()
    with pytest.raises(BodyplanError, match=f"another {word} "):
        sweep_in("run", **change).run(resume=True)


def test_resume_with_a_changed_space_is_refused(sweep_in, space):
    sweep_in("run", trials=3).run()
    wider = bp.Space(**{**space.definition, "width": bp.choice(8, 16, 64)})
    with pytest.raises(BodyplanError, match="another space .*choose another directory"):
        sweep_in("run", space=wider).run(resume=True)


def test_running_in_a_directory_that_holds_a_sweep_is_refused_and_harms_nothing(sweep_in, trials_of):
    sweep = sweep_in("run", trials=5)
    sweep.run()
    before = trials_of(sweep.directory)
    with pytest.raises(BodyplanError, match="already holds one; continue it with run"):
        sweep_in("run").run()
    assert trials_of(sweep.directory) == before


def test_two_runs_of_one_sweep_at_a_time_are_refused(sweep_in):
    sweep = sweep_in("run", trials=5)
    sweep.run()
    with (bp.Journal.open(sweep.directory, write=True),
          pytest.raises(BodyplanError, match="one process writes a sweep at a time")):
        sweep.run(resume=True)
