"""Figures show what the journal holds: the front, its uncertainty, and what it is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from bodyplan.dashboards.figures import (
    fidelity_figure,
    hypervolume_figure,
    matrix_figure,
    parallel_figure,
    pareto_figure,
)
from bodyplan.dashboards.style import span
from bodyplan.search.journal import Journal
from bodyplan.search.results import Results
from example_sweeps import OBJECTIVES, write_sweep


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweeps") / f"with{request.param}"
    return Results.read(write_sweep(directory, objectives=OBJECTIVES[:request.param]))


def trace(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_the_highlighted_points_are_the_front(results):
    drawn = trace(pareto_figure(results), "Pareto front")
    assert list(zip(drawn.y, drawn.x, strict=True)) == [tuple(row[:2]) for row in results.front.values]


def test_every_complete_candidate_is_drawn(results):
    figure = pareto_figure(results)
    drawn = sum(len(trace(figure, name).x) for name in ("Pareto front", "dominated, darker is later"))
    given = [trial for trial in results.baselines if trial.number not in results.on_front]
    assert drawn + len(given) == len(results.complete)


def test_axis_titles_carry_unit_device_and_direction(results):
    figure = pareto_figure(results)
    assert figure.layout.xaxis.title.text == "decode_latency (ms on cpu), less is better"
    assert figure.layout.yaxis.title.text == "loss (bits/byte), less is better"


def test_hover_tells_number_hash_interval_and_decisions(results):
    point = results.front.points[0]
    text = trace(pareto_figure(results), "Pareto front").text[0]
    assert f"#{point.number}" in text and point.short in text
    assert "bits/byte  [" in text and "width" in text and "body.mixer" in text


def test_baselines_twin_and_knee_have_symbols_of_their_own(results):
    figure = pareto_figure(results)
    symbols = {name: trace(figure, name).marker.symbol for name in ("given (initial=)", "random twin", "knee")}
    assert len(set(symbols.values())) == 3
    assert len(trace(figure, "given (initial=)").x) == 1


def test_front_points_carry_their_intervals_as_error_bars(results):
    drawn = trace(pareto_figure(results), "Pareto front")
    point = results.front.points[0]
    low, high = point.intervals["loss"]
    assert drawn.error_y.array[0] == pytest.approx(high - point.values["loss"])
    assert drawn.error_y.arrayminus[0] == pytest.approx(point.values["loss"] - low)


def test_the_step_line_bounds_every_candidate(results):
    """No candidate lies below the staircase of the two objectives drawn."""
    steps = trace(pareto_figure(results), "best of the two drawn")
    assert steps.line.shape == "hv" and list(steps.x) == sorted(steps.x)
    for loss, latency in results.points(results.complete)[:, :2]:
        reached = np.searchsorted(steps.x, latency, side="right") - 1
        assert reached >= 0 and steps.y[reached] <= loss


def test_an_objective_to_maximise_turns_the_step_line_round(tmp_path):
    up = (OBJECTIVES[0], {**OBJECTIVES[2], "goal": "max"})
    results = Results.read(write_sweep(tmp_path / "up", objectives=up))
    steps = trace(pareto_figure(results), "best of the two drawn")
    assert steps.line.shape == "vh"
    assert "more is better" in pareto_figure(results).layout.xaxis.title.text
    for loss, size in results.points(results.complete):
        assert steps.y[np.searchsorted(steps.x, size, side="left")] <= loss


def test_the_third_objective_is_the_colour_of_the_front(tmp_path):
    results = Results.read(write_sweep(tmp_path / "three"))
    marker = trace(pareto_figure(results), "Pareto front").marker
    assert list(marker.color) == [point.values["parameters"] for point in results.front]
    assert marker.colorbar.title.text == "parameters"
    assert len(matrix_figure(results).data[0].dimensions) == 3


def test_one_objective_is_drawn_over_time_with_the_best_so_far(tmp_path):
    results = Results.read(write_sweep(tmp_path / "one", objectives=OBJECTIVES[:1]))
    best = trace(pareto_figure(results), "best so far").y
    assert all(after <= before for before, after in zip(best, best[1:], strict=False))
    assert best[-1] == min(trial.values["loss"] for trial in results.complete)


def test_bounds_are_drawn(tmp_path):
    bounded = (OBJECTIVES[0], {**OBJECTIVES[1], "bound": 1.5})
    figure = pareto_figure(Results.read(write_sweep(tmp_path / "bounded", objectives=bounded)))
    assert figure.layout.shapes[0].x0 == 1.5 and "bound 1.5 ms" in figure.layout.annotations[0].text


def test_the_hypervolume_curve_never_falls_and_names_its_reference_point(results):
    figure = hypervolume_figure(results)
    assert {drawn.name for drawn in figure.data} == {"search", "random twin"}
    for drawn in figure.data:
        assert all(after >= before for before, after in zip(drawn.y, drawn.y[1:], strict=False))
    assert "reference point, fixed before the search: loss 5 bits/byte, decode_latency 20 ms" in \
        figure.layout.title.text


def test_fidelity_states_tau_its_interval_and_the_count(results):
    body = results.last("fidelity")
    figure = fidelity_figure(results)
    assert f"Kendall tau {body['tau']:.2f}" in figure.layout.title.text
    assert f"{body['low']:.2f} to {body['high']:.2f}, 12 candidates" in figure.layout.title.text
    assert list(figure.data[0].y) == body["standalone"]


def test_parallel_coordinates_show_each_front_member_once(results):
    dimensions = parallel_figure(results).data[0].dimensions
    assert all(len(dimension["values"]) == len(results.front) for dimension in dimensions)
    assert [d.label for d in dimensions][-len(results.objectives):] == [o.name for o in results.objectives]


def test_a_sweep_without_results_is_drawn_as_empty(tmp_path):
    with Journal.create(tmp_path / "young", {"objectives": list(OBJECTIVES)}) as journal:
        young = Results.read(journal)
    for draw in (pareto_figure, matrix_figure, parallel_figure, hypervolume_figure, fidelity_figure):
        assert draw(young).to_json()


def test_an_outlier_does_not_flatten_the_opening_view():
    low, high = span([1.0, 1.1, 1.2, 1.3, 500.0], keep=[1.0], is_log=False)
    assert 0.9 < low < 1.0 and 1.3 < high < 1.5
    assert span([1.0, 1.1, 1.2, 1.3, 500.0], keep=[500.0], is_log=False)[1] > 500
    assert span([float("nan")], keep=[], is_log=False) is None
