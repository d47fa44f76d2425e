"""How every figure looks: colours that stay apart for colour-blind readers and in grey print, fonts, axes, hover text.

The colours are Okabe and Ito's ("Color universal design", 2008); what matters also differs in shape and size, so
nothing is told by colour alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from ..search.front import Criterion
from ..search.journal import Trial
from ..search.results import fold_layers, show

__all__ = ["FRONT", "GREY", "INITIAL", "INK", "TWIN", "axis", "describe", "layout", "span"]

INK, MUTED, GRID = "#1F2933", "#52606D", "#E4E7EB"
FRONT, TWIN, INITIAL, GREY = "#D55E00", "#0072B2", "#009E73", "#B3BAC5"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_LOG_FROM = 20.0  # an axis whose values span a factor of more than this is drawn in logarithms
_HOVER_LINES = 9


def layout(figure: go.Figure, title: str, note: str = "", height: int = 560) -> go.Figure:
    """The house look on `figure`: a title that says what is seen, with a muted note below it."""
    text = f"<b>{html.escape(title)}</b>"
    if note:
        text += f"<br><span style='font-size:13px;color:{MUTED}'>{html.escape(note)}</span>"
    figure.update_layout(
        title={"text": text, "font": {"size": 18, "color": INK}, "x": 0, "xref": "paper", "xanchor": "left",
               "y": 1, "yref": "paper", "yanchor": "bottom", "pad": {"b": 36}},
        font={"family": FONT, "size": 14, "color": INK}, height=height, plot_bgcolor="white", paper_bgcolor="white",
        margin={"l": 80, "r": 24, "t": 96, "b": 104}, hovermode="closest",
        hoverlabel={"bgcolor": "white", "bordercolor": GREY, "align": "left", "font": {"family": FONT, "size": 13}},
        legend={"orientation": "h", "x": 0, "y": -64 / (height - 200), "xanchor": "left", "yanchor": "top",
                "font": {"size": 13}})
    lines = {"gridcolor": GRID, "linecolor": MUTED, "ticks": "outside", "tickcolor": MUTED, "zeroline": False,
             "showline": True, "title": {"font": {"size": 14}}}
    figure.update_xaxes(**lines)
    figure.update_yaxes(**lines)
    return figure


def axis(objective: Criterion, values: Iterable[float]) -> dict[str, Any]:
    """Axis settings for one objective: its label and direction, logarithmic where the values span a lot."""
    arrow = "less is better" if objective.goal == "min" else "more is better"
    numbers = [value for value in values if np.isfinite(value)]
    is_log = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > _LOG_FROM
    settings: dict[str, Any] = {"title": {"text": f"{html.escape(objective.label)}, {arrow}"}}
    if is_log:
        settings |= {"type": "log", "dtick": "D2" if max(numbers) / min(numbers) < 300 else 1, "exponentformat": "SI"}
    return settings


def span(values: ArrayLike, keep: ArrayLike, is_log: bool) -> list[float] | None:
    """The range to open an axis with: all of `keep` and the bulk of `values`, so that outliers do not flatten the
    rest. None when there is nothing to show; the bounds are logarithms for a logarithmic axis."""
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    lower, upper = np.percentile(numbers, [25, 75])
    near = numbers[(numbers >= lower - 4 * (upper - lower)) & (numbers <= upper + 4 * (upper - lower))]
    shown = np.concatenate([near, np.asarray(keep, dtype=np.float64)])
    shown = np.log10(shown) if is_log else shown
    margin = 0.05 * (float(np.ptp(shown)) or abs(float(shown[0])) or 1.0)
    return [float(shown.min()) - margin, float(shown.max()) + margin]


def describe(trial: Trial, objectives: Sequence[Criterion]) -> str:
    """Hover text: number and hash, each objective with its interval, then the decisions, layers folded."""
    lines = [f"<b>#{trial.number}</b>  {trial.short}" + ("  given, not found" if trial.initial else "")]
    for objective in objectives:
        value = show(trial.values.get(objective.name), objective.unit)
        if objective.name in trial.intervals:
            low, high = trial.intervals[objective.name]
            value += f"  [{show(low)}, {show(high)}]"
        lines.append(f"{html.escape(objective.name)}  {html.escape(value)}")
    folded = list(fold_layers(trial.labels).items())
    lines += [f"<span style='color:{MUTED}'>{html.escape(path)}</span>  {html.escape(_cut(label))}"
              for path, label in folded[:_HOVER_LINES]]
    if len(folded) > _HOVER_LINES:
        lines.append(f"<span style='color:{MUTED}'>and {len(folded) - _HOVER_LINES} more</span>")
    return "<br>".join(lines)


def _cut(label: str, width: int = 64) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"
