"""A sweep as runs of an MLflow store: a parent for the sweep, a child per candidate, kept up to date with the journal.

Everything here may be repeated: what the store holds already is found by its tags and left as it is. So a tracker that
was killed half-way, a resumed sweep and a rebuild from scratch are one and the same path.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .front import Criterion, Point
from .journal import Journal, Trial, encode
from .results import Results, common_decisions, pages, show
from .saved_views import RANK, are_supported, key, view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Runs", "connect"]

_SWEEP, _NUMBER, _PREDICTED = "bodyplan.sweep", "number", "predicted"
_ON_FRONT, _OFF_FRONT = "#D55E00", "#B3BAC5"  # the colours of the figures; MLflow draws a run in its `mlflow.runColor`
_MOST_TAG, _MOST_PARAM, _MOST_PARAMS, _MOST_METRICS = 7_900, 5_900, 100, 1_000  # MLflow's limits, a little below
_PARAMS = ("seed", "trials", "hours", "executor", "workers", "order", "in_flight", "space_size", "space_hash",
           "num_genes", "supernet", "supernet_steps", "supernet_strategy", "supernet_workers", "steps", "twin",
           "device", "dtype")
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING",
          "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}


def connect(uri: str) -> MlflowClient:
    """A client that sends no telemetry, logs warnings only and gives up on a silent server within seconds."""
    import logging

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@dataclass
class Child:
    """A candidate's run, the front rank it was last given there, and which of its numbers are predictions there."""

    run_id: str
    rank: int | None
    is_done: bool
    predicted: str = ""


class Runs:
    """The runs of one sweep in one store. Not thread-safe; the journal must be opened in the thread that uses it.

    Args:
        journal: of the sweep, open for reading.
        uri: of the MLflow store.
        experiment: its name; a new name is found when another sweep took the default one.
        children: "all" for every evaluated candidate, "front" for those that were on the front when looked at.
    """

    def __init__(self, journal: Journal, uri: str, experiment: str | None = None, children: str = "all"):
        self._journal, self._children_wanted = journal, children
        self._client = connect(uri)
        results = Results.read(journal)
        self.sweep_key = _sweep_key(results)
        self.experiment_id = self._find_experiment(results, uri, experiment)
        self._children: dict[int, Child] = {}
        self._parent = self._find_parent() or self._create_parent(results)
        self._volumes = len(self._client.get_metric_history(self._parent, "hypervolume"))

    def add_new(self) -> int:
        """Make a run of every candidate that has none yet; answers how many. About 30 ms each on SQLite."""
        wanted = self._wanted()
        for trial in wanted:
            self._add(trial)
        return len(wanted)

    def refresh(self, is_final: bool = False) -> None:
        """Bring the parent's numbers, table, note and views up to date, and the front tags of the children.

        Until `is_final`, only children that joined or left the front are tagged anew; then all that changed rank.
        """
        results = Results.read(self._journal)
        self._correct(results)
        self._tag_front(results, is_final)
        self._log_parent(results)
        self._log_table(results)
        if are_supported(_mlflow_version()):
            for name, value in view_tags(results.objectives, common_decisions(results.complete)).items():
                self._client.set_experiment_tag(self.experiment_id, name, value)

    def draw_pages(self, *names: str) -> None:
        """Write HTML pages anew, all without names (5 MB each, plotly included)."""
        results = Results.read(self._journal)
        for name in names or pages.names():
            self._client.log_text(self._parent, pages.get(name)(results), name)

    def add_models(self) -> None:
        """Put exported candidates into the Models tab, folder and all, each once."""
        known = {model.tags.get("bodyplan.export") for model in self._models()}
        results = Results.read(self._journal)
        trials = {trial.number: trial for trial in results.complete}
        for event in results.events.get("export", ()):
            folder = _export_folder(event.body, results.directory)
            if str(event.id) not in known and folder is not None and event.body["number"] in trials:
                self._add_model(results, trials[event.body["number"]], folder, str(event.id))

    def finish(self) -> None:
        """Everything once more, and the parent's run ended: FINISHED when the sweep is, KILLED when it was stopped."""
        self.add_new()
        self.refresh(is_final=True)
        self.add_models()
        self.draw_pages()
        is_done = self._journal.last("finished") is not None
        self._client.set_terminated(self._parent, "FINISHED" if is_done else "KILLED")

    def _find_experiment(self, results: Results, uri: str, name: str | None) -> str:
        wanted = name or results.name
        found = self._client.get_experiment_by_name(wanted)
        if found is not None and name is None and not self._is_ours(found.experiment_id):
            wanted = f"{wanted} ({self.sweep_key})"
            found = self._client.get_experiment_by_name(wanted)
        if found is not None:
            return str(found.experiment_id)
        local = uri.startswith("sqlite:")
        location = (results.directory / "mlartifacts").as_uri() if local else None
        return str(self._client.create_experiment(wanted, artifact_location=location))

    def _is_ours(self, experiment_id: str) -> bool:
        """Whether an experiment is free for this sweep: it holds this one or none at all."""
        held = self._client.search_runs([experiment_id], max_results=1)
        return not held or bool(self._search(experiment_id, 1))

    def _search(self, experiment_id: str, most: int = 0) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            batch = self._client.search_runs([experiment_id], f"tags.`{_SWEEP}` = '{self.sweep_key}'",
                                             max_results=most or 1000, page_token=token)
            found.extend(batch)
            token = batch.token
            if most or not token:
                return found

    def _find_parent(self) -> str | None:
        """The sweep's run in the store, if there is one; remembers the children found with it."""
        parent = None
        for run in self._search(self.experiment_id):
            if _NUMBER not in run.data.tags:
                parent = str(run.info.run_id)
                continue
            rank = run.data.metrics.get(RANK)
            self._children[int(run.data.tags[_NUMBER])] = Child(
                run.info.run_id, None if rank is None else int(rank), run.info.status != "RUNNING",
                run.data.tags.get(_PREDICTED, ""))
        if parent is not None:
            self._client.update_run(parent, status="RUNNING")
        return parent

    def _create_parent(self, results: Results) -> str:
        tags = {_SWEEP: self.sweep_key, "bodyplan.kind": "sweep", "mlflow.runColor": "#1F2933"}
        commit = _git_commit()
        if commit:
            tags["mlflow.source.git.commit"] = commit
        run = self._client.create_run(self.experiment_id, _milliseconds(results.began), tags, results.name)
        self._log(run.info.run_id, params=_sweep_params(results))
        return str(run.info.run_id)

    def _wanted(self) -> list[Trial]:
        ended = [trial for trial in self._journal.trials("search") if trial.state in ("complete", "failed")
                 and not (trial.number in self._children and self._children[trial.number].is_done)]
        if ended and self._children_wanted == "front":
            on_front = Results.read(self._journal).on_front
            ended = [trial for trial in ended if trial.number in on_front]
        return ended

    def _add(self, trial: Trial) -> None:
        child = self._children.get(trial.number)
        if child is None:
            tags = {"mlflow.parentRunId": self._parent, _SWEEP: self.sweep_key, **_trial_tags(trial)}
            run = self._client.create_run(self.experiment_id, _milliseconds(trial.started), tags,
                                          f"{trial.number:04d} {trial.short}")
            child = self._children[trial.number] = Child(run.info.run_id, None, False)
        child.predicted = _predicted(trial)
        self._log(child.run_id, _trial_metrics(trial), {key(path): label for path, label in trial.labels.items()},
                  time_ms=_milliseconds(trial.finished))
        status = "FINISHED" if trial.state == "complete" else "FAILED"
        self._client.set_terminated(child.run_id, status, _milliseconds(trial.finished))
        child.is_done = True

    def _correct(self, results: Results) -> None:
        """Put what was measured after all in the place of predictions."""
        for trial in results.complete:
            child = self._children.get(trial.number)
            if child is not None and child.predicted != _predicted(trial):
                self._log(child.run_id, _trial_metrics(trial), tags={_PREDICTED: _predicted(trial)})
                child.predicted = _predicted(trial)

    def _tag_front(self, results: Results, is_final: bool) -> None:
        for number, rank in results.ranks.items():
            child = self._children.get(number)
            on_front = number in results.on_front
            if child is None or child.rank == rank or not (is_final or on_front or child.rank == 1):
                continue
            self._log(child.run_id, {RANK: float(rank)}, tags={
                "pareto": "true" if on_front else "false", RANK: str(rank),
                "mlflow.runColor": _ON_FRONT if on_front else _OFF_FRONT})
            child.rank = rank

    def _log_parent(self, results: Results) -> None:
        self._log_volumes(results.volumes(results.trials))
        twin, fidelity = results.volumes(results.twin), results.last("fidelity") or {}
        numbers = {"front_size": len(results.front), "evaluated": len(results.complete), "failed": len(results.failed),
                   "predicted": sum(bool(t.predicted) for t in results.complete) if results.predictions else None,
                   "not_tried": len(results.screened) if results.predictions else None,
                   "twin_hypervolume": twin[-1] if twin else None, "kendall_tau": fidelity.get("tau"),
                   "kendall_tau_low": fidelity.get("low"), "kendall_tau_high": fidelity.get("high")}
        numbers |= _fidelity_numbers(fidelity)
        self._log(self._parent, {name: float(value) for name, value in numbers.items() if value is not None},
                  tags={"mlflow.note.content": _note(results)})

    def _log_volumes(self, volumes: Sequence[float]) -> None:
        """The hypervolume curve as one metric with a step per evaluation; steps that are there already stay."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric("hypervolume", value, now, step + 1) for step, value in enumerate(volumes)]
        for start in range(self._volumes, len(points), _MOST_METRICS):
            self._client.log_batch(self._parent, points[start:start + _MOST_METRICS])
        self._volumes = max(self._volumes, len(points))

    def _log_table(self, results: Results) -> None:
        """The front as a table MLflow pages through; `log_table` would append to the one before."""
        self._client.log_dict(self._parent, json.loads(_frame(results)), "front.json")
        self._client.set_tag(self._parent, "mlflow.loggedArtifacts", '[{"path": "front.json", "type": "table"}]')

    def _models(self) -> list[Any]:
        return list(self._client.search_logged_models([self.experiment_id], max_results=50))

    def _add_model(self, results: Results, trial: Trial, folder: Path, event: str) -> None:
        child = self._children.get(trial.number)
        run_id = child.run_id if child else self._parent
        name = key(f"{results.name}-{trial.number}").replace(".", "_").replace(":", "_").replace("/", "_")
        model = self._client.create_logged_model(
            self.experiment_id, name, run_id, model_type="bodyplan",
            tags={"mlflow.model.isExternal": "true", "bodyplan.export": event, "arch_hash": trial.hash},
            params={key(path): label for path, label in trial.labels.items()})
        for metric, value in _trial_metrics(trial).items():
            self._client.log_metric(run_id, metric, value, model_id=model.model_id)
        self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, "READY")

    def _log(self, run_id: str, metrics: Mapping[str, float] | None = None, params: Mapping[str, str] | None = None,
             tags: Mapping[str, str] | None = None, time_ms: int | None = None) -> None:
        """One batch, or as many as MLflow's limits make of it."""
        from mlflow.entities import Metric, Param, RunTag

        now = time_ms or int(time.time() * 1000)
        values = [Metric(name, value, now, 0) for name, value in (metrics or {}).items() if math.isfinite(value)]
        texts = [Param(name, str(value)[:_MOST_PARAM]) for name, value in (params or {}).items()]
        labels = [RunTag(name, value[:_MOST_TAG]) for name, value in (tags or {}).items()]
        self._client.log_batch(run_id, values[:_MOST_METRICS], texts[:_MOST_PARAMS], labels[:_MOST_PARAMS])
        for start in range(_MOST_PARAMS, len(texts), _MOST_PARAMS):
            self._client.log_batch(run_id, params=texts[start:start + _MOST_PARAMS])


def _sweep_key(results: Results) -> str:
    """Tells one sweep from another in a shared store: a hash of its definition and its first moment."""
    return hashlib.sha256(f"{results.began} {encode(results.definition)}".encode()).hexdigest()[:12]


def _sweep_params(results: Results) -> dict[str, str]:
    told = results.definition
    params = {name: told.get(name) for name in _PARAMS}
    params["strategy"] = _text(told.get("strategy"))
    params["task"] = (told.get("task") or {}).get("description")
    params |= {f"objective.{key(o.name)}": _direction(o) for o in results.objectives}
    params |= {f"version.{name}": value for name, value in (told.get("versions") or {}).items()}
    return {name: str(value) for name, value in params.items() if value is not None}


def _direction(objective: Criterion) -> str:
    bound = None if objective.bound is None else f"bound {show(objective.bound, objective.unit)}"
    parts = (objective.goal, objective.unit, objective.device and f"on {objective.device}", bound)
    return ", ".join(part for part in parts if part)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value) if isinstance(value, Mapping) else str(value)


def _fidelity_numbers(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is said beside Kendall's tau: Spearman, regret, tau within bins, the ceiling, and tau of what is free."""
    judged = {"": body, "ceiling_": body.get("ceiling") or {},
              **{f"{key(name)}_": proxy for name, proxy in (body.get("proxies") or {}).items()}}
    found: dict[str, Any] = {}
    for prefix, statistics in judged.items():
        found |= {f"{prefix}kendall_tau": statistics.get("tau"), f"{prefix}spearman": statistics.get("spearman"),
                  f"{prefix}kendall_tau_within_bins": (statistics.get("within") or {}).get("tau")}
        found |= {f"{prefix}top_{regret['k']}_regret": regret["value"] for regret in statistics.get("regret") or ()}
    return found


def _predicted(trial: Trial) -> str:
    """The objectives of which only a prediction is known."""
    return ", ".join(trial.predicted)


def _trial_tags(trial: Trial) -> dict[str, str]:
    tags = {_NUMBER: str(trial.number), "arch_hash": trial.hash, "state": trial.state, "pareto": "false",
            "initial": str(trial.initial).lower(), "mlflow.runColor": _OFF_FRONT}
    if trial.predicted:
        tags[_PREDICTED] = _predicted(trial)
    if trial.is_screened:
        tags["state"] = "not tried"
    if trial.seed is not None:
        tags["seed"] = str(trial.seed)
    if trial.failure is not None:
        tags["reason"] = trial.failure.get("reason", "")[:_MOST_TAG]
        tags["mlflow.note.content"] = f"```\n{trial.failure.get('traceback', '')[-_MOST_TAG + 20:]}\n```"
    return tags


def _trial_metrics(trial: Trial) -> dict[str, float]:
    metrics = {key(name): value for name, value in trial.values.items() if value is not None}
    for name, (low, high) in trial.intervals.items():
        metrics |= {f"{key(name)}_low": low, f"{key(name)}_high": high}
    return metrics | {"seconds": trial.seconds}


def _frame(results: Results) -> str:
    frame = results.front.to_frame()
    frame["export"] = [results.export_command(point) for point in results.front]
    return str(frame.to_json(orient="split", index=False))


def _note(results: Results) -> str:
    """The parent's description in Markdown: the front, and what to type to export each row."""
    head = ["trial", *(o.label for o in results.objectives), "export"]
    lines = [f"**{len(results.front)} candidates on the Pareto front** of {len(results.complete)} evaluated, "
             f"{len(results.failed)} failed.", *results.predictions, "", _line(head), _line(["---"] * len(head))]
    for point in results.front:
        line = _line([_name(point, results), *(_measured(point, o) for o in results.objectives),
                      f"`{results.export_command(point)}`"])
        if sum(map(len, lines)) + len(line) > _MOST_TAG - 300:
            lines.append(f"\nThe rest is in `front.json` and in `bodyplan front {results.directory}`.")
            break
        lines.append(line)
    return "\n".join(lines)


def _name(point: Point, results: Results) -> str:
    mark = " (knee)" if point.number == results.knee else " (given)" if point.initial else ""
    return f"{point.number}{mark}"


def _measured(point: Point, objective: Criterion) -> str:
    text = show(point.values[objective.name])
    if objective.name in point.intervals:
        low, high = point.intervals[objective.name]
        text += f" [{show(low)}, {show(high)}]"
    return text


def _line(cells: Iterable[str] | Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _export_folder(body: Mapping[str, Any], directory: Path) -> Path | None:
    """Where an exported candidate lies, also after the sweep's directory was moved; None when it is gone."""
    path = Path(body["path"])
    places = (path, directory / path, directory / "exported" / path.name)
    return next((place for place in places if place.is_dir()), None)


def _git_commit() -> str | None:
    """The commit of the working directory, if it is in a repository and git is there."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _mlflow_version() -> str:
    import mlflow

    return str(mlflow.__version__)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
