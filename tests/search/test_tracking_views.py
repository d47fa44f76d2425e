"""The JSON of MLflow's saved views."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from bodyplan.search.front import Criterion
from bodyplan.search.saved_views import are_supported, front_link, key, view_tags

LOSS, LATENCY, SIZE = Criterion("loss"), Criterion("decode latency [ms]"), Criterion("parameters")


def opened(tags, view="pareto-front"):
    envelope = json.loads(tags[f"mlflow.sharedViewState.{view}"])
    state = envelope["state"]
    if state.startswith("deflate;"):
        state = zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))).decode()
    return envelope, json.loads(state)


def test_a_view_is_an_envelope_of_name_time_and_state_as_text():
    envelope, _ = opened(view_tags([LOSS, SIZE], ["width"], created_ms=5))
    assert envelope["name"] == "Pareto front" and envelope["createdAt"] == 5
    assert isinstance(envelope["state"], str)


def test_two_objectives_are_a_scatter_and_decisions_parallel_coordinates():
    _, state = opened(view_tags([LOSS, SIZE], ["width", "body[0].mixer"]))
    scatter, parallel = state["compareRunCharts"]
    assert scatter["type"] == "SCATTER"
    assert scatter["xaxis"] == {"key": "parameters", "type": "METRIC"}
    assert scatter["yaxis"] == {"key": "loss", "type": "METRIC"}
    assert parallel["type"] == "PARALLEL" and parallel["showAllRuns"]
    assert parallel["selectedParams"] == ["width", "body.0.mixer"]
    assert parallel["selectedMetrics"] == ["loss", "parameters"]


def test_three_objectives_are_drawn_pair_by_pair():
    _, state = opened(view_tags([LOSS, LATENCY, SIZE], []))
    pairs = [(c["yaxis"]["key"], c["xaxis"]["key"]) for c in state["compareRunCharts"] if c["type"] == "SCATTER"]
    latency = key(LATENCY.name)
    assert pairs == [("loss", latency), ("loss", "parameters"), (latency, "parameters")]


def test_one_objective_is_drawn_as_bars():
    _, state = opened(view_tags([LOSS], []))
    assert [chart["type"] for chart in state["compareRunCharts"]] == ["BAR", "PARALLEL"]


def test_every_chart_lies_in_a_section_that_exists():
    _, state = opened(view_tags([LOSS, LATENCY, SIZE], ["width"]))
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    uuids = [chart["uuid"] for chart in state["compareRunCharts"]]
    assert len(set(uuids)) == len(uuids)


def test_front_only_filters_by_the_pareto_tag_and_shares_the_rest():
    tags = view_tags([LOSS, SIZE], ["width"])
    (_, everyone), (_, front) = opened(tags), opened(tags, "front-only")
    assert front.pop("searchFilter") == "tags.pareto = 'true'" and everyone.pop("searchFilter") == ""
    assert front == everyone


def test_the_front_is_loaded_first_because_the_page_loads_a_hundred_runs():
    _, state = opened(view_tags([LOSS, SIZE], []))
    assert state["orderByKey"] == "metrics.`front_rank`" and state["orderByAsc"] is True


def test_a_view_that_would_not_fit_a_tag_is_compressed():
    tags = view_tags([LOSS, SIZE], [f"body[{layer}].mixer.{'x' * 200}" for layer in range(80)])
    assert all(len(value) <= 20_000 for value in tags.values())
    assert len(opened(tags)[1]["compareRunCharts"][-1]["selectedParams"]) == 80


def test_the_link_opens_the_runs_page_in_its_charts():
    assert front_link("http://127.0.0.1:5000/", "7") == (
        "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=pareto-front"
        "&compareRunsMode=CHART")
    assert "viewStateShareKey" not in front_link("http://h", "7", view=None)


@pytest.mark.parametrize("version, supported", [("3.14.9", False), ("3.15.0", True), ("3.17.2", True),
                                                ("4.0.0rc1", True), ("2.22.0", False), ("odd", False)])
def test_views_are_written_only_for_versions_that_show_them(version, supported):
    assert are_supported(version) is supported


@pytest.mark.parametrize("name, taken", [
    ("body[0].mixer.0.heads", "body.0.mixer.0.heads"), ("a b:c/d-e_f", "a b:c/d-e_f"), ("loss (bits)", "loss _bits_"),
    ("x" * 300, "x" * 250)])
def test_names_are_written_as_mlflow_takes_them(name, taken):
    assert key(name) == taken
