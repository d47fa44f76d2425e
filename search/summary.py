"""The last lines of a sweep: the front, how far its numbers can be trusted, and what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .front import Front
from .progress import duration, front_table
from .results import Results, shown_path

if TYPE_CHECKING:
    from .session import Session

__all__ = ["fidelity_lines", "front_table", "summarise"]

_ROWS = 24


def summarise(session: Session, front: Front, twin: Front | None, exported: str | None) -> None:
    """Print it through the session's reporter."""
    say = session.reporter.say
    session.reporter.show(front_table(front, [front.knee().number] if len(front) else [], limit=_ROWS))
    say(_trials_line(session))
    for line in Results.read(session.journal).predictions:
        say(line)
    for name, reason in (session.surrogates.trouble if session.surrogates is not None else {}).items():
        say(f"{name} was measured throughout, nothing could be learned from it: {reason}")
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
    """A "fidelity" event in words. Lines without numbers in the event (an old one, or one seed) are left out."""
    seeds = "first of two seeds" if body.get("ceiling") else "one seed"
    lines = [f"inherited against standalone {body['objective']}: Kendall tau {_shown(body)} "
             f"(95 %, {body['count']} candidates, {body['steps']} steps each, "
             f"{seeds}), Spearman {body['spearman']:.2f}"]
    if body["proxies"]:
        lines.append("  for comparison, larger taken as better: " + ", ".join(
            f"{name} {_shown(proxy)}" for name, proxy in body["proxies"].items()))
    if body.get("ceiling"):
        lines.append(f"  ceiling, one standalone seed against another: {_shown(body['ceiling'])}")
    beside = {"inherited": body, **body["proxies"], **({"another seed": body["ceiling"]} if body.get("ceiling") else {})}
    if body.get("within"):
        lines.append(f"  within {body['within']['bins']} bins of equal parameters: " + ", ".join(
            f"{name} {_shown(judged['within'])}" for name, judged in beside.items()))
    return lines + [_regret_line(index, beside, body.get("unit", "")) for index in range(len(body.get("regret", ())))]


def _shown(judged: dict[str, Any]) -> str:
    return f"{judged['tau']:.2f} [{judged['low']:.2f}, {judged['high']:.2f}]"


def _regret_line(index: int, beside: dict[str, dict[str, Any]], unit: str) -> str:
    """What the best by each score loses to the best of all."""
    k = beside["inherited"]["regret"][index]["k"]
    found = [(name, judged["regret"][index]) for name, judged in beside.items()]
    return (f"  lost by training only the best {k if k > 1 else 'one'}: " + ", ".join(
        f"{name} {regret['value']:.3g} [{regret['low']:.3g}, {regret['high']:.3g}]" for name, regret in found)
        + f" {unit}").rstrip()


def _trials_line(session: Session) -> str:
    trials = session.journal.trials("search")
    tried = [trial for trial in trials if not trial.is_screened]
    failed = sum(trial.state == "failed" for trial in tried)
    spent = sum(trial.seconds for trial in trials)
    return f"{len(tried)} candidates, {failed} failed, {duration(spent)} of evaluation, seed {session.sweep.seed}"


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
