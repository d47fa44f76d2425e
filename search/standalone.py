"""Candidates trained alone, and what that says of the scores a search went by.

A standalone training is an event of the journal, known by candidate, steps and replicate, so that none is made twice:
not by a resume, not by a larger sample, not by a second question about the same sweep.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BodyplanError
from .fidelity import measure_fidelity, stratified
from .journal import Journal, Trial
from .origin import WEIGHTS_FOLDER

if TYPE_CHECKING:
    from .session import Session

__all__ = ["compare", "draw_sample", "measure", "recorded", "train_each"]

_DEFAULT_SAMPLE = 12


def measure(session: Session, candidates: int | None = None, steps: int | None = None, seeds: int = 1) -> dict[str, Any]:
    """The body of a "fidelity" event for a sample of this sweep's candidates; only what is missing is trained.

    See `Sweep.measure_fidelity` for the arguments and errors.
    """
    sweep = session.sweep
    steps = sweep.steps if steps is None else steps
    if session.metric is None:
        raise BodyplanError("fidelity compares scores with training alone: none of this sweep's objectives is its task's "
                            "held-out metric; add the objective \"loss\"")
    if not sweep.supernet and steps == sweep.steps:
        raise BodyplanError(f"fidelity compares scores with another training: this sweep trained every candidate alone "
                            f"for {steps} steps already; give other steps (`--steps`)")
    sample = draw_sample(session, candidates or sweep.fidelity_sample or _DEFAULT_SAMPLE)
    runs = [train_each(session, sample, steps, replicate) for replicate in range(seeds)]
    body = compare(session, sample, runs, steps)
    if body is None:
        raise BodyplanError(f"a rank correlation needs at least three candidates: {session.journal.directory} has "
                            f"{len(sample)} to train alone, and the journal says why trainings failed; search more first "
                            "(`bodyplan resume`)")
    return body


def draw_sample(session: Session, count: int) -> list[Trial]:
    """`count` complete candidates spread over parameters; those of earlier samples are taken where they fit."""
    complete = [trial for trial in session.journal.trials() if trial.state == "complete"]
    distinct = list({trial.hash: trial for trial in reversed(complete)}.values())
    sizes = [session.sweep.space.architecture(trial.genome).cost().parameters for trial in distinct]
    before = [number for event in session.journal.events("fidelity") for number in event.body["numbers"]]
    return stratified(distinct, sizes, count, session.sweep.seed, before)


def train_each(session: Session, trials: Sequence[Trial], steps: int, replicate: int = 0) -> dict[int, Mapping[str, Any]]:
    """Results of training each alone, by number. The first training for the sweep's own steps keeps its weights."""
    from .session import Subject

    sweep, metric = session.sweep, session.metric
    assert metric is not None
    keeps = sweep.supernet and steps == sweep.steps and replicate == 0
    name = "training candidates alone" + (f", seed {replicate + 1}" if replicate else "")
    return session.evaluate("standalone", "standalone", {"weights": "own", "steps": steps},
                            [Subject(trial.number, trial.genome, trial.hash) for trial in trials], [metric], name,
                            sweep.directory / WEIGHTS_FOLDER if keeps else None, replicate)


def compare(session: Session, sample: Sequence[Trial], runs: Sequence[Mapping[int, Mapping[str, Any]]],
            steps: int) -> dict[str, Any] | None:
    """Write down how the scores of `sample` agree with each one's trainings alone, once; None for fewer than three.

    `runs` are the results by number of one or two seeds. Candidates of which a training failed are left out.
    """
    metric = session.metric
    assert metric is not None
    done = [trial for trial in sample if all(run[trial.number]["state"] == "complete" for run in runs)]
    about = {"numbers": [trial.number for trial in done], "steps": steps, "seeds": len(runs)}
    for event in session.journal.events("fidelity"):
        if {"seeds": 1, **event.body}.items() >= about.items():
            return event.body
    if len(done) < 3:
        return None
    costs = [session.sweep.space.architecture(trial.genome).cost() for trial in done]
    inherited = [trial.values[metric.name] for trial in done]
    alone = [[run[trial.number]["values"][metric.name] for trial in done] for run in runs]
    body = measure_fidelity(inherited, alone[0], metric.goal,
                            {"parameters": [cost.parameters for cost in costs], "macs": [cost.macs for cost in costs]},
                            *alone[1:2])
    body |= {**about, "inherited": inherited, "standalone": alone[0], "again": alone[1] if len(alone) > 1 else None,
             "objective": metric.name, "unit": metric.unit, "seed": session.sweep.seed}
    session.journal.append("fidelity", body)
    return body


def recorded(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The body of the newest measurement in a sweep's journal, None where there is none."""
    with Journal.open(directory) as journal:
        event = journal.last("fidelity")
    return None if event is None else event.body
