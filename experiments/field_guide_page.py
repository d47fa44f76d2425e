"""The tables of docs/operators.md, from the lines of a guide and what the operators declare."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ops import Row, rows
from .fidelity_page import BEGIN, END
from .fidelity_work import Record
from .field_guide import BATCH, FRAME, LONGEST, RATES, SPEEDS, TRIALS, WIDTH, subjects

__all__ = ["tables", "write_page"]

KINDS = {"mixer": "Mixers", "channel": "Channel mixers"}


def write_page(page: Path, guide: Path) -> Path:
    """Write the tables between the two marks of `page`, and the guide's lines beside it; answers the page.

    Raises ValueError when there is no guide or no marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not guide.is_file() or not begun or not ended:
        what = f"{guide} is missing" if not guide.is_file() else f"{page} lacks {BEGIN if not begun else END}"
        raise ValueError(f"a report goes from a guide into a page with two marks: {what}")
    page.write_text(f"{before}{BEGIN}\n\n{tables(Record(guide, write=False))}\n{END}{after}", encoding="utf-8")
    kept = page.with_suffix(".jsonl")
    if kept.resolve() != guide.resolve():
        shutil.copyfile(guide, kept)
    return page


def tables(record: Record) -> str:
    """What was asked, a table for mixers and one for channel mixers, what stands in none. Raises ValueError before the
    first answer."""
    answers = {(line["operator"], line["what"]): line for line in record.of("answer")}
    if not answers:
        raise ValueError(f"a report needs answers: {record.path} has none; run without --report first")
    told = {name for name, _ in answers}
    listed = [row for row in rows() if row.name in told]
    parts = [*_about(record), "", *_asked()]
    for kind, title in KINDS.items():
        found = [row for row in listed if row.kind == kind]
        parts += ["", f"### {title}", "", *_table(found, answers)] if found else []
    left = [row.name for row in rows() if row.kind in KINDS and row.name not in told]
    waiting = [name for name in left if name in subjects()]
    alone = [name for name in left if name not in waiting]
    if waiting:
        parts += ["", f"Not reached yet, which the same command goes on with: {', '.join(waiting)}."]
    parts += ["", f"Not in the guide, since they need a second stream, other layers, or sizes that this frame does not have: "
              f"{', '.join(alone)}." if alone else "", *_failures(answers)]
    return "\n".join(parts)


def _about(record: Record) -> Iterator[str]:
    run = record.last("run") or {}
    machine = run.get("machine", {})
    yield (f"Two layers of each operator at width {WIDTH}, batches of {BATCH} with AdamW, seed 0, at a "
           f"learning rate of {RATES[0]:g}, and of {RATES[1]:g} where that falls short. {machine.get('name', '')}, "
           f"one thread, torch {machine.get('torch', '')}, {run.get('date', '')}. Last command: `{run.get('command', '')}`.")


def _asked() -> Iterator[str]:
    yield from ("| task | asks for | steps | error below |", "|---|---|---:|---:|")
    for name, trial in TRIALS.items():
        yield f"| {name} | {trial.asks} | {trial.steps} | {trial.beats:g} % |"


def _table(found: list[Row], answers: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    heading = ["operator", "patterns", "cost in T", "state", *TRIALS, "parameters",
               *(f"speed at {length:,}" for _, length in SPEEDS), "source"]
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * 4}{'---:|' * (len(TRIALS) + 1 + len(SPEEDS))}---|"
    frame = ["*without one*", "", "", "", *(_error(answers.get((FRAME, task)), task) for task in TRIALS), "", "", "", ""]
    yield f"| {' | '.join(frame)} |"
    for row in found:
        speed = answers.get((row.name, "speed"), {})
        ratios = speed.get("ratios", {})
        cells = [f"`{row.name}`", ", ".join(row.patterns), row.complexity, row.state,
                 *(_error(answers.get((row.name, task)), task) for task in TRIALS),
                 f"{speed['parameters']:,}" if "parameters" in speed else "–",
                 *(f"{ratios[str(length)]:.2f}" if str(length) in ratios else "–" for _, length in SPEEDS),
                 f"{row.paper} ({row.year})"]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _error(line: dict[str, Any] | None, task: str) -> str:
    """The error in per cent, bold where it stays below the threshold; empty where the task does not fit."""
    if line is None:
        return ""
    if "failure" in line:
        return "failed"
    if "slow" in line:
        return "slow"
    text = f"{line['error']:.1f}"
    return f"**{text}**" if line["error"] < TRIALS[task].beats else text


def _failures(answers: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    for (name, what), line in answers.items():
        if "failure" in line:
            yield f"\n`{name}` failed at {what}: {line['failure']}"
    slow = [f"`{name}` at {what} ({line['slow']:.2f} s a step)" for (name, what), line in answers.items() if "slow" in line]
    if slow:
        yield f"\nNot trained, since a training would take more than {LONGEST:g} seconds of one core: {', '.join(slow)}."
