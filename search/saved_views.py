"""Saved views of MLflow's run page: "Pareto front" and "Front only".

A view is an experiment tag `mlflow.sharedViewState.<id>` whose value is JSON: a name, a creation time, and the state
of the page as JSON text. MLflow's interface writes and reads such tags since 3.15 but does not document them; the
fields are those of `ExperimentPageUIState.tsx` and `runs-charts.types.ts` in its sources. An older MLflow ignores the
tags, so they are not written for it.
"""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from .front import Criterion

__all__ = ["FRONT_VIEW", "PARETO_VIEW", "RANK", "are_supported", "front_link", "key", "view_tags"]

PARETO_VIEW, FRONT_VIEW = "pareto-front", "front-only"
RANK = "front_rank"
_TAG = "mlflow.sharedViewState."
_MOST_CHARACTERS = 20_000  # of an experiment tag
_SINCE = (3, 15)


def front_link(base_url: str, experiment_id: str, view: str | None = PARETO_VIEW) -> str:
    """The full address of a saved view on a server; of the charts of all runs with `view=None`.

    Without `workflowType` MLflow opens its pages for language-model traces, where no run is shown.
    """
    query = {"workflowType": "machine_learning", "viewStateShareKey": view, "compareRunsMode": "CHART"}
    fields = urlencode({name: value for name, value in query.items() if value})
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs?{fields}"


def are_supported(version: str) -> bool:
    """Whether an MLflow of this version shows saved views."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= _SINCE


def key(name: str) -> str:
    """A name as MLflow takes it for a param, metric or tag: "body[0].mixer" becomes "body.0.mixer"."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r"\[(\d+)\]", r".\1", name))[:250]


def view_tags(objectives: Sequence[Criterion], decisions: Sequence[str],
              created_ms: int | None = None) -> dict[str, str]:
    """The experiment tags of both views.

    Args:
        objectives: the first is drawn against each of the others; one alone as bars.
        decisions: paths of the decisions for the parallel coordinates. MLflow leaves out runs that lack one of
            them, so name only decisions that every run makes.
    """
    state = _state(objectives, decisions)
    only_front = state | {"searchFilter": "tags.pareto = 'true'"}
    created = created_ms or int(time.time() * 1000)
    return {f"{_TAG}{PARETO_VIEW}": _envelope("Pareto front", state, created),
            f"{_TAG}{FRONT_VIEW}": _envelope("Front only", only_front, created)}


def _state(objectives: Sequence[Criterion], decisions: Sequence[str]) -> dict[str, Any]:
    shown = [f"metrics.`{key(objective.name)}`" for objective in objectives]
    return {
        "searchFilter": "", "orderByKey": f"metrics.`{RANK}`", "orderByAsc": True, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": [*shown, "tags.`pareto`", *(f"params.`{key(path)}`" for path in decisions)],
        "runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False, "runListHidden": False, "isAccordionReordered": True, "groupBy": None,
        "groupsExpanded": {}, "useGroupedValuesInCharts": True, "hideEmptyCharts": False, "autoRefreshEnabled": True,
        "compareRunSections": [_section("front", "Pareto front", 2 if len(objectives) > 2 else 1),
                               _section("decisions", "Decisions", 1)],
        "compareRunCharts": _charts(objectives, decisions),
    }


def _charts(objectives: Sequence[Criterion], decisions: Sequence[str]) -> list[dict[str, Any]]:
    names = [key(objective.name) for objective in objectives]
    charts = [_chart("front", "SCATTER", f"{names[0]}-{name}", xaxis={"key": name, "type": "METRIC"},
                     yaxis={"key": names[0], "type": "METRIC"}) for name in names[1:]]
    if len(names) > 2:
        charts.append(_chart("front", "SCATTER", f"{names[1]}-{names[2]}", xaxis={"key": names[2], "type": "METRIC"},
                             yaxis={"key": names[1], "type": "METRIC"}))
    if len(names) == 1:
        charts.append(_chart("front", "BAR", names[0], metricKey=names[0]))
    charts.append(_chart("decisions", "PARALLEL", "parallel", selectedParams=[key(path) for path in decisions],
                         selectedMetrics=names, showAllRuns=True))
    return charts


def _section(uuid: str, name: str, columns: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "columns": columns, "cardHeight": 440}


def _chart(section: str, kind: str, uuid: str, **fields: Any) -> dict[str, Any]:
    return {"uuid": uuid, "type": kind, "runsCountToCompare": 100, "metricSectionId": section, "deleted": False,
            "isGenerated": False, **fields}


def _envelope(name: str, state: dict[str, Any], created_ms: int) -> str:
    """The value of a view's tag: plain JSON, compressed only when it would not fit otherwise."""
    text = json.dumps(state, separators=(",", ":"))
    value = json.dumps({"name": name, "createdAt": created_ms, "state": text}, separators=(",", ":"))
    if len(value) > _MOST_CHARACTERS:
        packed = "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode("ascii")
        value = json.dumps({"name": name, "createdAt": created_ms, "state": packed}, separators=(",", ":"))
    return value
