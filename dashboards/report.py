"""The report of a sweep: one HTML file that opens from disk, with every number's unit, device, seed and interval."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ..search.front import Criterion, Point
from ..search.journal import Journal, Trial
from ..search.results import Results, fold_layers, show, shown_path
from .figures import fidelity_figure, hypervolume_figure, matrix_figure, parallel_figure, pareto_figure
from .page import facts, figure, page, section, table, write

__all__ = ["hypervolume_page", "pareto_page", "report_page", "write_pareto", "write_report"]


def write_report(sweep_dir: str | Path | Journal, path: str | os.PathLike[str]) -> Path:
    """Write the report of a sweep, running or finished, to `path`; answers where it is.

    Raises BodyplanError when the directory holds no journal.
    """
    return write(path, report_page(Results.read(sweep_dir)))


def write_pareto(sweep_dir: str | Path | Journal, path: str | os.PathLike[str]) -> Path:
    """Write the page of the Pareto front alone. Errors as in `write_report`."""
    return write(path, pareto_page(Results.read(sweep_dir)))


def pareto_page(results: Results) -> str:
    """The front in its figures: the first two objectives, every pair from three on, decisions along the front."""
    return page(f"Pareto front of {results.name}", _front_figures(results))


def hypervolume_page(results: Results) -> str:
    """The hypervolume curve of the search and its random twin."""
    return page(f"Hypervolume of {results.name}", [figure(hypervolume_figure(results), "hypervolume")])


def report_page(results: Results) -> str:
    """The whole report as HTML."""
    parts = [_header(results), _tiles(results), *_front_figures(results), _front_table(results),
             figure(hypervolume_figure(results), "hypervolume")]
    if results.last("fidelity"):
        parts += [figure(fidelity_figure(results), "fidelity"), _fidelity(results)]
    parts += [_predictions(results), _failures(results), _space(results), _method(results)]
    return page(f"{results.name}: report", parts)


def _front_figures(results: Results) -> Iterator[str]:
    yield figure(pareto_figure(results), "pareto")
    if len(results.objectives) > 2:
        yield figure(matrix_figure(results), "matrix")
    if len(results.objectives) > 1 and results.complete:
        yield figure(parallel_figure(results), "parallel")


def _header(results: Results) -> str:
    state = "finished" if "finished" in results.events else "not finished yet"
    began = _date(results.began)
    return (f"<h1>{html.escape(results.name)}</h1><div class='muted'>{html.escape(_strategy(results))} over "
            f"{len(results.objectives)} objectives, begun {began}, {state}</div>")


def _tiles(results: Results) -> str:
    tiles = [(str(len(results.front)), "on the front"),
             (str(len(results.complete)), f"evaluated, {len(results.failed)} failed")]
    tiles += [_best_tile(results, column) for column in range(len(results.objectives)) if len(results.front)]
    if results.gain is not None:
        tiles.append((f"{results.gain:+.1%}", "hypervolume against random search"))
    fidelity = results.last("fidelity")
    if fidelity:
        tiles.append((f"{fidelity['tau']:.2f}", f"Kendall tau [{fidelity['low']:.2f}, {fidelity['high']:.2f}], "
                      f"{fidelity['count']} candidates"))
    if results.predictions:
        tiles.append((str(sum(bool(trial.predicted) for trial in results.complete)), "of them predicted, not measured"))
    cells = "".join(f"<div class='tile'><b>{html.escape(value)}</b><span class='muted small'>{html.escape(name)}"
                    "</span></div>" for value, name in tiles)
    return f"<div class='tiles'>{cells}</div>"


def _best_tile(results: Results, column: int) -> tuple[str, str]:
    objective = results.objectives[column]
    values = results.front.values[:, column]
    best = values.max() if objective.goal == "max" else values.min()
    return show(float(best)), f"best {objective.label}"


def _front_table(results: Results) -> str:
    """A row per front member, best first objective first, with what to type to export it."""
    if not len(results.front):
        return section("The front", "<p>No candidate is complete and within its bounds yet.</p>")
    tested = [o for o in results.objectives if any(o.name in point.test for point in results.front)]
    alone = [o for o in results.objectives if any(o.name in point.standalone for point in results.front)]
    head = ["#", *(o.label for o in results.objectives), *(f"{o.name}, test split" for o in tested),
            *(f"{o.name}, trained alone" for o in alone), "decisions and export"]
    return section("The front", table(head, (_row(results, point, tested, alone) for point in results.front)))


def _row(results: Results, point: Point, tested: list[Criterion], alone: list[Criterion]) -> list[str]:
    badge = "knee" if point.number == results.knee else "given" if point.initial else ""
    cells = [f"<b>{point.number}</b>" + (f" <span class='badge'>{badge}</span>" if badge else "")]
    cells += [_measured(point, objective) for objective in results.objectives]
    cells += [show(point.test.get(objective.name)) for objective in tested]
    cells += [show(point.standalone.get(objective.name)) for objective in alone]
    decisions = ", ".join(f"{path} <b>{html.escape(label)}</b>" for path, label in fold_layers(point.labels).items()
                          if path.count(".") < 2)
    return [*cells, f"<div class='small'>{decisions}</div><code>{html.escape(results.export_command(point))}</code>"
            f" <span class='muted small'>{point.short}</span>"]


def _measured(trial: Trial, objective: Criterion) -> str:
    text = show(trial.values.get(objective.name))
    if objective.name in trial.intervals:
        low, high = trial.intervals[objective.name]
        text += f"<div class='muted small'>{show(low)} to {show(high)}</div>"
    return text


def _fidelity(results: Results) -> str:
    """How the inherited score ranks, beside what is free and beside another training of the same candidates."""
    body = results.last("fidelity") or {}
    judged = {"inherited weights": body, **(body.get("proxies") or {})}
    if body.get("ceiling"):
        judged["another standalone seed (the ceiling)"] = body["ceiling"]
    regrets = [f"lost by the best {regret['k']} ({body.get('unit') or 'metric'})" for regret in body.get("regret", ())]
    head = ["ranked by", "Kendall tau", "Spearman", "tau within bins of equal parameters", *regrets]
    rows = ([html.escape(name), _interval(found, "tau"), _interval(found, "spearman", "spearman_"),
             _interval(found.get("within") or {}, "tau"), *(_interval(one, "value") for one in found.get("regret", ()))]
            for name, found in judged.items())
    note = "<p class='muted small'>Brackets are bootstrap 95 % intervals over the candidates.</p>"
    return section("How far the scores rank", table(head, rows), note)


def _interval(found: dict[str, Any], name: str, prefix: str = "") -> str:
    low, high = found.get(f"{prefix}low"), found.get(f"{prefix}high")
    return show(found.get(name)) + ("" if low is None else f" [{show(low)}, {show(high)}]")


def _failures(results: Results) -> str:
    """Failed candidates by reason, most frequent first, each with the traceback of one."""
    by_reason: dict[str, list[Trial]] = {}
    for trial in results.failed:
        by_reason.setdefault((trial.failure or {}).get("reason", "unknown"), []).append(trial)
    if not by_reason:
        return section("Failures", "<p>No candidate failed.</p>")
    rows = [[html.escape(reason), str(len(trials)), _numbers(trials), _traceback(trials[0])]
            for reason, trials in sorted(by_reason.items(), key=lambda item: -len(item[1]))]
    return section("Failures", table(["reason", "count", "candidates", "one of them"], rows))


def _numbers(trials: list[Trial], most: int = 8) -> str:
    named = ", ".join(f"#{trial.number}" for trial in trials[:most])
    return named + (f" and {len(trials) - most} more" if len(trials) > most else "")


def _traceback(trial: Trial) -> str:
    text = (trial.failure or {}).get("traceback") or ""
    return f"<details><summary>#{trial.number}</summary><pre>{html.escape(text)}</pre></details>" if text else ""


def _predictions(results: Results) -> str:
    """What the predictor did; nothing without one."""
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in results.predictions)
    return section("Measured and predicted", lines) if lines else ""


def _space(results: Results) -> str:
    told = results.definition
    size = told.get("space_size")
    listing = json.dumps(told.get("space"), indent=2, ensure_ascii=False)
    return section("The space", facts([("candidates", f"{int(size):,}" if size else "not countable"),
                                       ("decisions", told.get("num_genes")), ("SHA-256", told.get("space_hash"))]),
                   f"<details><summary>definition</summary><pre>{html.escape(listing)}</pre></details>")


def _method(results: Results) -> str:
    """How the numbers came about: what a reader needs to judge or repeat them."""
    told, supernet, reference = results.definition, results.last("supernet"), results.last("reference")
    task = told.get("task") or {}
    where = shown_path(results.directory)
    return section("How it was measured", facts([
        ("objectives", "; ".join(_objective(objective) for objective in results.objectives)),
        ("task", task.get("description")), ("data fingerprint", task.get("fingerprint")),
        ("strategy", _strategy(results)), ("seed", told.get("seed")), ("budget", _budget(told)),
        ("shared weights", _supernet(told, supernet)), ("predictor", _predictor(told.get("predictor"))),
        ("reference point", _reference(results, reference)),
        ("executor", told.get("executor")), ("platform", told.get("platform")),
        ("versions", ", ".join(f"{name} {value}" for name, value in (told.get("versions") or {}).items()) or None),
        ("begun", _date(results.began)), ("report written", _date(datetime.now().timestamp())),
        ("look again", f"bodyplan ui {where}"), ("go on", f"bodyplan resume {where}")]))


def _predictor(told: dict[str, Any] | None) -> str | None:
    return None if told is None else f"{', '.join(told['models'])}, intervals that hold {told['coverage']:.0%}"


def _objective(objective: Criterion) -> str:
    bound = "" if objective.bound is None else f", bound {show(objective.bound, objective.unit)}"
    return f"{objective.label}, {'least' if objective.goal == 'min' else 'most'} is best{bound}"


def _strategy(results: Results) -> str:
    stored = results.definition.get("strategy")
    if not isinstance(stored, dict):
        return str(stored or "search")
    settings = ", ".join(f"{key} {value}" for key, value in stored.items() if key != "name")
    return f"{stored.get('name', 'search')} ({settings})" if settings else str(stored.get("name", "search"))


def _budget(told: Any) -> str | None:
    parts = [f"{told['trials']} candidates" if told.get("trials") else "", f"{told['hours']:g} h" if
             told.get("hours") else ""]
    return " or ".join(part for part in parts if part) or None


def _supernet(told: Any, body: dict[str, Any] | None) -> str | None:
    if body is None:
        return None
    steps, seconds = body.get("steps"), body.get("seconds")
    where = [f"{body[name]}{unit}" for name, unit in (("supernet_workers", " workers"), ("device", ""), ("dtype", ""))
             if name in body]
    return ", ".join([f"{told.get('supernet_strategy') or 'trained'}, {steps} steps",
                      *([f"{seconds:.0f} s"] if seconds else []), *where])


def _reference(results: Results, body: dict[str, Any] | None) -> str | None:
    if body is None:
        return None
    return f"{results.corner} ({body['source']})" if body.get("source") else results.corner


def _date(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")
