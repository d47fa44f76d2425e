"""The last lines of a sweep: the front, how far its numbers can be trusted, and what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .front import Front
from .progress import duration, front_table
from .results import shown_path

if TYPE_CHECKING:
    from .session import Session

__all__ = ["fidelity_lines", "front_table", "summarise"]

_ROWS = 24


def summarise(session: Session, front: Front, twin: Front | None, exported: str | None) -> None:
    """Print it through the session's reporter."""
    say = session.reporter.say
    session.reporter.show(front_table(front, [front.knee().number] if len(front) else [], limit=_ROWS))
    say(_trials_line(session))
    say(_volume_line(front, twin))
    fidelity = session.journal.last("fidelity")
    for line in fidelity_lines(fidelity.body) if fidelity else ():
        say(line)
    for line in session.tracker.lines():
        say(line)
    if exported:
        say(f"exported the knee: {exported}")
    say(f"next: {_next_command(session, front, exported)}")


def fidelity_lines(body: dict[str, Any]) -> list[str]:
    """A "fidelity" event in words."""
    lines = [f"inherited against standalone {body['objective']}: Kendall tau {body['tau']:.2f} "
             f"[{body['low']:.2f}, {body['high']:.2f}] (95 %, {body['count']} candidates, {body['steps']} steps each, "
             f"one seed), Spearman {body['spearman']:.2f}"]
    if body["proxies"]:
        lines.append("  for comparison, larger taken as better: " + ", ".join(
            f"{name} {proxy['tau']:.2f} [{proxy['low']:.2f}, {proxy['high']:.2f}]"
            for name, proxy in body["proxies"].items()))
    return lines


def _trials_line(session: Session) -> str:
    trials = session.journal.trials("search")
    failed = sum(trial.state == "failed" for trial in trials)
    spent = sum(trial.seconds for trial in trials)
    return f"{len(trials)} candidates, {failed} failed, {duration(spent)} of evaluation, seed {session.sweep.seed}"


def _volume_line(front: Front, twin: Front | None) -> str:
    corner = ", ".join(f"{value:.4g} {objective.unit}".strip() for value, objective in
                       zip(front.reference or (), front.objectives, strict=False))
    beside = "" if twin is None else f"; random twin {twin.hypervolume():.4g}"
    return f"hypervolume {front.hypervolume():.4g}{beside} (reference point {corner})"


def _next_command(session: Session, front: Front, exported: str | None) -> str:
    directory = shown_path(session.sweep.directory)
    if not len(front):
        return f"bodyplan front {directory}"
    if exported is None:
        return f"bodyplan show {directory} {front.knee().number}"
    return f"bodyplan ui {directory}"
