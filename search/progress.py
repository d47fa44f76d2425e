"""What a person sees while a sweep runs: a bar on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from .front import Front, Point

__all__ = ["Reporter", "console", "duration", "front_table"]

_LINE_SECONDS = 10.0   # at most one plain line in this time, besides the first and the last of a stage
_DRAW_SECONDS = 0.1


def console(stream: TextIO, quiet: bool = False) -> Console:
    """For a terminal of any width; a file or a pipe gets lines wide enough for a table."""
    return Console(file=stream, quiet=quiet, highlight=False, soft_wrap=True, width=None if stream.isatty() else 140)


class Reporter:
    """Says what happens; `quiet` says nothing. NO_COLOR takes the colours away (rich honours it).

    A stage is one bar: `begin`, `advance` as often as one likes (drawing is rate-limited), `end`.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self._console = console(stream or sys.stderr, quiet)
        self._is_live = self._console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._total, self._began, self._drawn = "", 0.0, 0.0, 0.0
        self._first = 0.0
        self._deadline: float | None = None

    def say(self, text: str) -> None:
        """One line of text, above the bar."""
        self._console.print(text, markup=False)

    def show(self, table: Any) -> None:
        """A table or any other rich renderable."""
        if not self._console.quiet:  # rich would lay it out all the same
            self._console.print(table)

    def begin(self, name: str, total: float | None, done: float = 0, deadline: float | None = None) -> None:
        """Start a stage of `total` units (None: unknown), of which `done` are done by earlier runs.

        `deadline` (`time.monotonic`) is when it ends at the latest.
        """
        self.end()
        self._deadline = deadline
        self._name, self._total, self._began, self._drawn = name, total or 0, time.monotonic(), 0.0
        self._first = done
        if not self._is_live:
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                   TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(*columns, console=self._console, transient=False)
        self._task = self._bar.add_task(name, total=total, completed=int(done), note="", left="")
        self._bar.start()

    def is_due(self, done: float) -> bool:
        """Whether `advance` would draw now; spares the caller computing a note nobody sees."""
        since = time.monotonic() - self._drawn
        return done >= self._total > 0 or since >= (_DRAW_SECONDS if self._is_live else _LINE_SECONDS)

    def advance(self, done: float, note: str = "") -> None:
        """The stage stands at `done` units; `note` is shown beside it."""
        if not self.is_due(done):
            return
        self._drawn = time.monotonic()
        left = self._left(done)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note, left=left)
        elif not self._is_live:
            parts = [f"{self._name}: {done:g}" + (f"/{self._total:g}" if self._total else ""), note, left]
            self.say(", ".join(part for part in parts if part))

    def _left(self, done: float) -> str:
        spent, made = time.monotonic() - self._began, done - self._first
        limits = [] if self._deadline is None else [self._deadline - time.monotonic()]
        if self._total and made > 0:
            limits.append(spent / made * (self._total - done))
        left = min(limits, default=0.0)
        return f"{duration(left)} left" if left > 0 else ""

    def end(self) -> None:
        """Finish the stage, if one is on."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "45 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"


def front_table(front: Front, marks: Sequence[int] = (), limit: int | None = None) -> Table:
    """The front as a table: units in the heading, intervals beside the values, the knee marked.

    Args:
        marks: trial numbers to mark as the knee.
        limit: show at most so many points, spread evenly over the front, marked ones always.
    """
    shown = _spread(front.points, marks, limit)
    left_out = "" if len(shown) == len(front) else f" ({len(shown)} shown, evenly spread)"
    table = Table(title=f"Pareto front: {len(front)} candidates{left_out}", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("hash")
    for objective in front.objectives:
        table.add_column(f"{objective.label} {'↓' if objective.goal == 'min' else '↑'}", justify="right")
    extra = [(kind, name) for kind in ("test", "standalone")
             for name in next((list(getattr(point, kind)) for point in front if getattr(point, kind)), [])]
    for kind, name in extra:
        table.add_column(f"{name}, {'test split' if kind == 'test' else 'trained alone'}", justify="right")
    for point in shown:
        number = f"{point.number}{' knee' if point.number in marks else ''}{' yours' if point.initial else ''}"
        cells = [_cell(point.values[o.name], point.intervals.get(o.name)) for o in front.objectives]
        cells += [_cell(getattr(point, kind).get(name), None) for kind, name in extra]
        table.add_row(number, point.short, *cells)
    return table


def _spread(points: Sequence[Point], marks: Sequence[int], limit: int | None) -> list[Point]:
    if limit is None or len(points) <= limit:
        return list(points)
    kept = {round(i * (len(points) - 1) / (limit - 1)) for i in range(limit)}
    return [point for i, point in enumerate(points) if i in kept or point.number in marks]


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.4g}"
    return f"{text} [{interval[0]:.4g}, {interval[1]:.4g}]".replace("[", "\\[") if interval else text
