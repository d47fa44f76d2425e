"""Plotly figures of a sweep: its front, its hypervolume over time, how well inherited scores rank.

Each takes a `Results` and returns a `plotly.graph_objects.Figure`; a figure that has nothing to show says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..search.front import Criterion
from ..search.journal import Trial
from ..search.results import Results, common_decisions, show
from .style import FRONT, GREY, INITIAL, INK, TWIN, axis, describe, layout, span

__all__ = ["fidelity_figure", "hypervolume_figure", "matrix_figure", "pareto_figure", "parallel_figure"]

_THIRD = ["#FFE08A", "#F6A33C", "#D55E00", "#8C2D04", "#3F1200"]  # one hue, light to dark: reads without colour too


def pareto_figure(results: Results) -> go.Figure:
    """The first objective against the second: every candidate, the front with its step line, baselines and twin.

    With three objectives or more the front is coloured by the third and the step line is the best of the two that
    are drawn. With one objective: the best value so far, by evaluation.
    """
    if len(results.objectives) < 2:
        return _progress_figure(results)
    second, first = results.objectives[1], results.objectives[0]
    figure = go.Figure(_point_traces(results))
    _frame_axes(figure, results)
    for objective, add in ((second, figure.add_vline), (first, figure.add_hline)):
        if objective.bound is not None:
            add(objective.bound, line={"color": INK, "width": 1, "dash": "dash"},
                annotation_text=f"bound {show(objective.bound, objective.unit)}")
    done = len(results.complete)
    return layout(figure, f"{len(results.front)} of {done} candidates are on the Pareto front",
                  f"{first.name} against {second.name}" + (f", front coloured by {results.objectives[2].name}"
                  if len(results.objectives) > 2 else "") + _seed_note(results), height=620)


def matrix_figure(results: Results) -> go.Figure:
    """Every objective against every other; the front highlighted. Meant for three objectives or more."""
    rest = [trial for trial in results.complete if trial.number not in results.on_front]
    figure = go.Figure()
    for name, trials, colour, size in (("dominated", rest, GREY, 5), ("front", list(results.front), FRONT, 7)):
        points = results.points(trials)
        figure.add_trace(go.Splom(
            dimensions=[{"label": objective.label.replace(" (", "<br>("), "values": points[:, column]}
                        for column, objective in enumerate(results.objectives)],
            marker={"color": colour, "size": size, "line": {"color": "white", "width": 0.5}}, name=name,
            text=[describe(trial, results.objectives) for trial in trials], hovertemplate="%{text}<extra></extra>",
            diagonal={"visible": False}, showupperhalf=False))
    layout(figure, "Every pair of objectives", "the candidates of the front are dominated by none in all objectives "
           "together, though they may be in a pair", height=240 * len(results.objectives))
    return figure.update_layout(dragmode="select")


def parallel_figure(results: Results) -> go.Figure:
    """Objectives and the decisions every front member has, one line per front member. Drag along an axis to filter."""
    trials = list(results.front) or results.complete
    first = results.objectives[0]
    points = results.points(trials)
    dimensions: list[dict[str, Any]] = [_decision_dimension(path, trials) for path in common_decisions(trials)]
    dimensions += [{"label": objective.name, "values": points[:, column], "tickformat": ".3s"}
                   for column, objective in enumerate(results.objectives)]
    figure = go.Figure(go.Parcoords(
        dimensions=dimensions, labelangle=-12, labelside="bottom",
        line={"color": points[:, 0], "colorscale": _THIRD, "showscale": True,
              "colorbar": {"title": {"text": first.label, "side": "right"}, "thickness": 12}}))
    layout(figure, "Decisions and objectives along the front", "one line per candidate; drag along an axis to keep "
           "only what passes there", height=480)
    return figure.update_layout(margin={"t": 128, "l": 130, "r": 40})


def hypervolume_figure(results: Results) -> go.Figure:
    """Hypervolume by evaluations, the search beside its random twin; the reference point is in the note."""
    figure = go.Figure()
    for name, trials, colour, dash in (("search", results.trials, FRONT, "solid"),
                                       ("random twin", results.twin, TWIN, "dash")):
        volumes = results.volumes(trials)
        if volumes:
            figure.add_trace(go.Scatter(
                x=list(range(1, len(volumes) + 1)), y=volumes, name=name, mode="lines",
                line={"color": colour, "width": 3, "dash": dash, "shape": "hv"},
                hovertemplate=f"{name}: %{{y:.5g}} after %{{x}} evaluations<extra></extra>"))
    if results.front.reference is None:
        return _empty(figure, "Hypervolume", "no reference point has been fixed yet")
    figure.update_xaxes(title_text="candidates evaluated", rangemode="tozero")
    figure.update_yaxes(title_text="hypervolume, more is better", exponentformat="SI")
    return layout(figure, _volume_title(results), f"reference point, fixed before the search: {results.corner}",
                  height=460)


def fidelity_figure(results: Results) -> go.Figure:
    """Score with shared weights against score after training alone, with Kendall's tau and its interval."""
    body = results.last("fidelity")
    figure = go.Figure()
    if body is None:
        return _empty(figure, "Inherited against standalone", "no candidate has been trained on its own yet")
    objective = _fidelity_objective(results, body)
    figure.add_trace(go.Scatter(
        x=body["inherited"], y=body["standalone"], mode="markers+text", text=[f"#{n}" for n in body["numbers"]],
        textposition="top center", textfont={"size": 11}, showlegend=False,
        marker={"color": TWIN, "size": 11, "line": {"color": "white", "width": 1}},
        hovertemplate="%{text}<br>inherited %{x:.4g}<br>standalone %{y:.4g}<extra></extra>"))
    figure.update_xaxes(title_text=f"{objective.label} with the supernet's weights")
    figure.update_yaxes(title_text=f"{objective.label} trained alone")
    return layout(figure, f"Kendall tau {body['tau']:.2f} between inherited and standalone {objective.name}",
                  f"{body.get('confidence', 0.95):.0%} interval {body['low']:.2f} to {body['high']:.2f}, "
                  f"{body['count']} candidates trained alone{_steps_note(body)}, one seed each{_proxy_note(body)}",
                  height=480)


def _point_traces(results: Results) -> list[go.Scatter]:
    rest = [t for t in results.complete if t.number not in results.on_front and not t.initial]
    traces: list[go.Scatter] = []
    twin = [trial for trial in results.twin if trial.state == "complete"]
    if twin:
        traces.append(_scatter(results, twin, "random twin", {"color": TWIN, "symbol": "x-thin", "size": 6,
                                                              "line": {"color": TWIN, "width": 1}}, opacity=0.45))
        traces.append(_steps(results, twin, "random twin's best", TWIN, "dot"))
    traces.append(_cloud(results, rest))
    traces.append(_steps(results, results.complete, "best of the two drawn", FRONT, "solid"))
    traces.append(_front(results))
    if results.baselines:
        traces.append(_ring(results, results.baselines, "given (initial=)", "diamond", INITIAL))
    knee = [point for point in results.front if point.number == results.knee]
    return [*traces, _ring(results, knee, "knee", "circle", INK)]


def _cloud(results: Results, trials: Sequence[Trial]) -> go.Scatter:
    """The dominated candidates, darker the later they came."""
    return _scatter(results, trials, "dominated, darker is later", {
        "color": [trial.number for trial in trials], "colorscale": [[0, "#D8DDE3"], [1, "#6B7785"]], "size": 7,
        "line": {"color": "white", "width": 0.5}})


def _front(results: Results) -> go.Scatter:
    marker: dict[str, Any] = {"color": FRONT, "size": 11, "line": {"color": INK, "width": 1}}
    if len(results.objectives) > 2:
        third = results.objectives[2]
        marker |= {"color": [point.values[third.name] for point in results.front], "colorscale": _THIRD,
                   "colorbar": {"title": {"text": third.label, "side": "right"}, "thickness": 12,
                                "exponentformat": "SI", "len": 0.9}}
    trace = _scatter(results, list(results.front), "Pareto front", marker)
    for key, objective in (("error_y", results.objectives[0]), ("error_x", results.objectives[1])):
        bars = _error_bars(list(results.front), objective)
        if bars:
            trace.update({key: bars})
    return trace


def _ring(results: Results, trials: Sequence[Trial], name: str, symbol: str, colour: str) -> go.Scatter:
    """An open symbol around points that are drawn already, with their numbers beside them."""
    trace = _scatter(results, trials, name, {"color": "rgba(0,0,0,0)", "symbol": symbol, "size": 20,
                                             "line": {"color": colour, "width": 2.5}})
    label = "knee" if name == "knee" else "given"
    return trace.update(mode="markers+text", hovertext=trace.text, hovertemplate="%{hovertext}<extra></extra>",
                        text=[f"<b>{label} #{trial.number}</b>" for trial in trials], textposition="top right",
                        textfont={"color": colour, "size": 13})


def _scatter(results: Results, trials: Sequence[Trial], name: str, marker: dict[str, Any], **more: Any) -> go.Scatter:
    points = results.points(trials)
    return go.Scatter(x=points[:, 1], y=points[:, 0], mode="markers", name=name, marker=marker,
                      text=[describe(trial, results.objectives) for trial in trials],
                      hovertemplate="%{text}<extra></extra>", **more)


def _steps(results: Results, trials: Sequence[Trial], name: str, colour: str, dash: str) -> go.Scatter:
    """The staircase between what the trials reach in the two drawn objectives and what they do not."""
    best = results.points(results.best_in(trials, 1, 0))
    shape = "hv" if results.goals[1] == "min" else "vh"
    return go.Scatter(x=best[:, 1], y=best[:, 0], mode="lines", name=name, hoverinfo="skip",
                      line={"color": colour, "width": 2, "dash": dash, "shape": shape})


def _error_bars(trials: Sequence[Trial], objective: Criterion) -> dict[str, Any] | None:
    if not any(objective.name in trial.intervals for trial in trials):
        return None
    values = [trial.values[objective.name] for trial in trials]
    ends = [trial.intervals.get(objective.name, (value, value)) for trial, value in zip(trials, values, strict=True)]
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": "rgba(31,41,51,0.45)",
            "array": [high - value for (_, high), value in zip(ends, values, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(ends, values, strict=True)]}


def _frame_axes(figure: go.Figure, results: Results) -> None:
    everyone = [*results.complete, *(trial for trial in results.twin if trial.state == "complete")]
    points, kept = results.points(everyone), results.points([*results.front, *results.baselines])
    for column, update in ((1, figure.update_xaxes), (0, figure.update_yaxes)):
        settings = axis(results.objectives[column], points[:, column])
        update(**settings, range=span(points[:, column], kept[:, column], settings.get("type") == "log"))


def _progress_figure(results: Results) -> go.Figure:
    """One objective: every candidate by number, and the best so far."""
    objective, done = results.objectives[0], results.complete
    values = results.points(done)[:, 0]
    best = np.fmax.accumulate(values) if objective.goal == "max" else np.fmin.accumulate(values)
    numbers = [trial.number for trial in done]
    figure = go.Figure([
        go.Scatter(x=numbers, y=values, mode="markers", name="candidate", marker={"color": GREY, "size": 7},
                   text=[describe(trial, results.objectives) for trial in done],
                   hovertemplate="%{text}<extra></extra>"),
        go.Scatter(x=numbers, y=best, mode="lines", name="best so far", hoverinfo="skip",
                   line={"color": FRONT, "width": 3, "shape": "hv"})])
    settings = axis(objective, values)
    figure.update_xaxes(title_text="candidate")
    figure.update_yaxes(**settings, range=span(values, best[-1:], settings.get("type") == "log"))
    top = show(float(best[-1]), objective.unit) if len(best) else "none yet"
    return layout(figure, f"Best {objective.name}: {top}", f"{len(done)} candidates" + _seed_note(results))


def _decision_dimension(path: str, trials: Sequence[Trial]) -> dict[str, Any]:
    labels = [trial.labels[path] for trial in trials]
    options = sorted(set(labels), key=lambda label: (_number(label) is None, _number(label) or 0.0, label))
    return {"label": path, "values": [options.index(label) for label in labels],
            "tickvals": list(range(len(options))), "ticktext": [option[:18] for option in options]}


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _volume_title(results: Results) -> str:
    if results.gain is None:
        return "Hypervolume of the search"
    return f"Hypervolume is {results.gain:+.1%} against random search of the same budget"


def _steps_note(body: dict[str, Any]) -> str:
    return f" for {body['steps']} steps" if body.get("steps") else ""


def _proxy_note(body: dict[str, Any]) -> str:
    """What ranks for free, for comparison: tau of each trivial proxy, taken as larger is better."""
    proxies = body.get("proxies") or {}
    return "".join(f"; {name} alone {proxy['tau']:.2f}" for name, proxy in proxies.items())


def _fidelity_objective(results: Results, body: dict[str, Any]) -> Criterion:
    named = [objective for objective in results.objectives if objective.name == body.get("objective")]
    return (named or [o for o in results.objectives if o.needs == "model"] or list(results.objectives))[0]


def _seed_note(results: Results) -> str:
    seed = results.definition.get("seed")
    return "" if seed is None else f"; seed {seed}"


def _empty(figure: go.Figure, title: str, why: str) -> go.Figure:
    figure.add_annotation(text=why, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return layout(figure, title, height=260)
