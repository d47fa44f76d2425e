"""MLflow shows what the journal holds, however the tracker was interrupted, and never stops a sweep."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random

import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search import runs as runs_module
from bodyplan.search.journal import Journal
from bodyplan.search.results import Results
from bodyplan.search.runs import Runs, connect
from bodyplan.search.tracking import MLflowTracker, check_tracking, default_uri, rebuild
from example_sweeps import write_end, write_sweep, write_trials

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests here: making a new one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def runs_of(uri, experiment_id):
    """The parents and the children (by number) in an experiment."""
    found = connect(uri).search_runs([experiment_id], max_results=1000)
    children = [run for run in found if "number" in run.data.tags]
    parents = [run for run in found if "number" not in run.data.tags]
    return parents, {int(run.data.tags["number"]): run for run in children}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, store):
    """A finished sweep with an exported candidate: (results, parent run, children by number, experiment id)."""
    directory = write_sweep(tmp_path_factory.mktemp("sweeps") / "tracked", trials=20)
    folder = directory / "exported" / "knee"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("# a model")
    knee = Results.read(directory).knee
    with Journal.open(directory, write=True) as journal:
        journal.append("export", {"number": knee, "path": "/moved/away/knee"})
    experiment_id = rebuild(directory, store)
    parents, children = runs_of(store, experiment_id)
    return Results.read(directory), parents, children, experiment_id


def test_there_is_one_parent_and_a_child_per_candidate(tracked):
    results, parents, children, _ = tracked
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert set(children) == {trial.number for trial in results.trials}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}


def test_decisions_are_params_and_objectives_metrics_with_their_intervals(tracked):
    results, _, children, _ = tracked
    trial = results.complete[0]
    run = children[trial.number]
    assert run.data.params["body.0.mixer"] == trial.labels["body[0].mixer"]
    assert run.data.params["width"] == trial.labels["width"]
    assert run.data.metrics["loss"] == trial.values["loss"]
    assert (run.data.metrics["loss_low"], run.data.metrics["loss_high"]) == trial.intervals["loss"]
    assert run.data.tags["arch_hash"] == trial.hash


def test_pareto_tags_and_ranks_are_those_of_the_front(tracked):
    results, _, children, _ = tracked
    assert {n for n, run in children.items() if run.data.tags["pareto"] == "true"} == results.on_front
    for number, rank in results.ranks.items():
        assert children[number].data.tags["front_rank"] == str(rank)
        assert children[number].data.metrics["front_rank"] == rank


def test_the_front_is_drawn_in_another_colour(tracked):
    results, _, children, _ = tracked
    colours = {number: run.data.tags["mlflow.runColor"] for number, run in children.items()}
    on, off = ({colours[n] for n in chosen} for chosen in (results.on_front, set(colours) - results.on_front))
    assert len(on) == len(off) == 1 and on != off


def test_failed_trials_are_failed_runs_with_their_reason(tracked):
    results, _, children, _ = tracked
    assert results.failed
    for trial in results.failed:
        assert children[trial.number].info.status == "FAILED"
        assert children[trial.number].data.tags["reason"] == trial.failure["reason"]


def test_the_parent_tells_how_the_sweep_was_set_up(tracked):
    _, (parent,), _, _ = tracked
    params = parent.data.params
    assert params["seed"] == "0" and params["space_size"] == "123456789012345678901"
    assert params["objective.decode_latency"] == "min, ms, on cpu"
    assert json.loads(params["strategy"])["name"] == "evolution"


def test_the_parent_holds_the_hypervolume_curve_and_the_rank_correlation(tracked, store):
    results, (parent,), _, _ = tracked
    history = connect(store).get_metric_history(parent.info.run_id, "hypervolume")
    curve = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert curve == pytest.approx(results.volumes(results.trials))
    assert parent.data.metrics["kendall_tau"] == results.last("fidelity")["tau"]


def test_the_note_lists_the_front_with_the_command_to_export_each(tracked):
    results, (parent,), _, _ = tracked
    note = parent.data.tags["mlflow.note.content"]
    for point in results.front:
        assert f"`{results.export_command(point)}`" in note


def test_pages_and_the_front_table_are_artifacts(tracked, store, tmp_path):
    results, (parent,), _, _ = tracked
    client = connect(store)
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"pareto.html", "hypervolume.html", "report.html", "front.json"}
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front.json", str(tmp_path))).read_text())
    assert [row[table["columns"].index("number")] for row in table["data"]] == [p.number for p in results.front]


def test_the_exported_model_is_in_the_models_tab_with_its_folder(tracked, store):
    results, _, children, experiment_id = tracked
    (model,) = connect(store).search_logged_models([experiment_id])
    assert str(model.status) == "READY" and model.source_run_id == children[results.knee].info.run_id
    assert model.params["width"] == children[results.knee].data.params["width"]
    assert {metric.key for metric in model.metrics} >= {"loss", "parameters"}
    assert [item.path for item in connect(store).list_logged_model_artifacts(model.model_id)] == ["model.py"]


def test_both_views_are_saved_with_the_experiment(tracked, store):
    _, _, _, experiment_id = tracked
    tags = connect(store).get_experiment(experiment_id).tags
    assert {"mlflow.sharedViewState.pareto-front", "mlflow.sharedViewState.front-only"} <= set(tags)


def test_rebuilding_what_is_there_changes_nothing(tracked, store):
    results, parents, children, experiment_id = tracked
    assert rebuild(results.directory, store) == experiment_id
    again_parents, again = runs_of(store, experiment_id)
    assert {n: run.info.run_id for n, run in again.items()} == {n: run.info.run_id for n, run in children.items()}
    assert [run.info.run_id for run in again_parents] == [run.info.run_id for run in parents]
    assert len(connect(store).search_logged_models([experiment_id])) == 1


def test_a_tracker_killed_half_way_leaves_no_double(tmp_path, store):
    directory = write_sweep(tmp_path / "killed", trials=8, failing=100)
    with Journal.open(directory) as journal:
        half = Runs(journal, store)
        half._add(journal.trials("search")[0])
        trial = journal.trials("search")[1]  # its run was created, but nothing was logged
        half._client.create_run(half.experiment_id, tags={
            "mlflow.parentRunId": half._parent, "bodyplan.sweep": half.sweep_key, **runs_module._trial_tags(trial)})
    parents, children = runs_of(store, rebuild(directory, store))
    assert len(parents) == 1 and sorted(children) == list(range(8))
    assert all(run.info.status == "FINISHED" and "loss" in run.data.metrics for run in children.values())


def test_what_was_predicted_is_tagged_and_replaced_once_it_was_measured(tmp_path, store):
    directory = write_sweep(tmp_path / "predicted", trials=4, twin=False, finished=False)
    values = {"loss": 2.0, "decode_latency": 0.9, "parameters": 1e5}
    with Journal.open(directory, write=True) as journal:
        genome = journal.trials("search")[0].genome
        for number, extra in ((4, {"predicted": ["decode_latency"]}), (5, {"screened": {"decode_latency": [9.0, 8.0, 9.5]}})):
            state = {"state": "complete", "values": values, "intervals": {"decode_latency": [0.8, 1.0]}} if number == 4 else {
                "state": "failed", "failure": {"reason": "not tried: ...", "traceback": ""}}
            journal.append("ask", {"n": 1, "genomes": [genome.to_json()], "numbers": [number], "new": [True],
                                   "hashes": [f"{number}" * 64], "labels": [{"width": "64"}]})
            journal.append("result", {"number": number, "seconds": 0.5, "seed": 1, "worker": "w0", "extra": extra, **state})
    _, children = runs_of(store, rebuild(directory, store))
    assert children[4].data.tags["predicted"] == "decode_latency" and children[4].data.metrics["decode_latency"] == 0.9
    assert children[5].data.tags["state"] == "not tried" and "predicted" not in children[3].data.tags
    with Journal.open(directory, write=True) as journal:
        journal.append("measured", {"number": 4, "state": "complete", "values": {"decode_latency": 0.95},
                                    "intervals": {"decode_latency": [0.94, 0.96]}, "extra": {}})
        (trial,) = [trial for trial in journal.trials("search") if trial.number == 4]
    assert trial.values == {**values, "decode_latency": 0.95} and trial.intervals["decode_latency"] == (0.94, 0.96)
    assert trial.extra["guesses"] == {"decode_latency": [0.9, 0.8, 1.0]} and not trial.predicted
    _, children = runs_of(store, rebuild(directory, store))
    assert children[4].data.metrics["decode_latency"] == 0.95 and children[4].data.tags["predicted"] == ""


def test_a_tracker_follows_a_sweep_and_drains_on_closing(tmp_path, store):
    directory = write_sweep(tmp_path / "live", trials=2, twin=False, finished=False)
    with Journal.open(directory, write=True) as journal, MLflowTracker(directory, store) as tracker:
        rng = Random(5)
        for number in range(2, 14):
            write_trials(journal, range(number, number + 1), rng)
            tracker.notice()
        write_end(journal, rng)
    assert tracker.error is None
    parents, children = runs_of(store, tracker._experiment_id)
    assert sorted(children) == list(range(14)) and parents[0].info.status == "FINISHED"


def test_a_stopped_sweep_is_a_killed_run_until_it_is_finished(tmp_path, store):
    directory = write_sweep(tmp_path / "stopped", trials=3, twin=False, finished=False, failing=100)
    experiment_id = rebuild(directory, store)
    assert runs_of(store, experiment_id)[0][0].info.status == "KILLED"
    with Journal.open(directory, write=True) as journal:
        write_trials(journal, range(3, 15), Random(1))
        write_end(journal, Random(2))
    assert rebuild(directory, store) == experiment_id
    parents, children = runs_of(store, experiment_id)
    assert parents[0].info.status == "FINISHED" and len(children) == 15


def test_two_sweeps_of_one_name_get_an_experiment_each(tmp_path, store):
    one, other = (write_sweep(tmp_path / folder / "same", trials=3, finished=False, failing=100)
                  for folder in ("one", "other"))
    assert rebuild(one, store) != rebuild(other, store)


def test_only_front_members_get_runs_if_so_asked(tmp_path, store):
    directory = write_sweep(tmp_path / "sparse", trials=12)
    _, children = runs_of(store, rebuild(directory, store, children="front"))
    assert set(children) == Results.read(directory).on_front


def test_a_store_that_fails_is_reported_once_and_stops_nothing(tmp_path, store, monkeypatch):
    directory = write_sweep(tmp_path / "unlucky", trials=3, twin=False, finished=False)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Runs, "add_new", fail)
    tracker = MLflowTracker(directory, store)
    with pytest.warns(RuntimeWarning, match="disk full.*rebuilds the views") as caught, tracker:
        deadline = time.monotonic() + 60
        while tracker.error is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len([warning for warning in caught if "disk full" in str(warning.message)]) == 1


def test_by_default_the_store_lies_in_the_sweeps_directory(tmp_path):
    tracker = MLflowTracker(tmp_path / "a sweep")
    assert tracker.uri == default_uri(tmp_path / "a sweep") == f"sqlite:///{tmp_path}/a sweep/mlflow.db"
    assert tracker.lines() == [f"MLflow: bodyplan ui '{tmp_path}/a sweep'"]


def test_an_unreachable_server_is_answered_before_any_work(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(BodyplanError, match="does not answer at 127.0.0.1"):
            MLflowTracker(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_server_that_accepts_and_says_nothing_counts_as_unreachable(monkeypatch):
    monkeypatch.setattr("bodyplan.search.tracking._CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BodyplanError, match="does not answer"):
        check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_answers_anything_is_taken():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.handle_request, daemon=True).start()
    check_tracking(f"http://127.0.0.1:{server.server_port}/mlflow")
    server.server_close()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://host", "nonsense"])
def test_a_uri_mlflow_keeps_no_runs_under_is_refused(uri):
    with pytest.raises(ValueError, match="a tracking URI begins with sqlite://"):
        check_tracking(uri)


def test_a_database_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BodyplanError, match="folder that exists"):
        check_tracking(f"sqlite:///{tmp_path}/missing/mlflow.db")


def test_an_unknown_choice_of_children_is_refused(tmp_path):
    with pytest.raises(ValueError, match="children must be 'all' or 'front': got 'best'"):
        MLflowTracker(tmp_path, children="best")
