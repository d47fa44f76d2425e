"""One run of a sweep: the journal it writes, the workers it uses, and what the stages share."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..space.genome import Genome
from .dispatch import Dispatcher, StopRequest
from .executors.base import Executor, Job, make_executor
from .front import Criterion, Front
from .journal import Journal
from .loop import Cache, result_body, saving
from .origin import SweepOrigin
from .progress import Reporter
from .resume import Ledger, seconds_spent
from .seeds import evaluation_seed
from .surrogates import Surrogates

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Session", "Subject", "Surroundings"]


@dataclass(frozen=True)
class Subject:
    """A candidate to be evaluated outside the search: a probe, a sample to train alone, a front member."""

    number: int
    genome: Genome
    hash: str


class Session:
    """A context: workers, trackers and the signal handler are there inside it and gone after it, however it ends."""

    def __init__(self, sweep: Sweep, journal: Journal, surroundings: Surroundings):
        self.sweep, self.journal = sweep, journal
        self.executor, self.tracker, self._mirror = surroundings.executor, surroundings.tracker, surroundings.mirror
        self.objectives = tuple(Criterion.of(objective) for objective in sweep.objectives)
        self.reporter = Reporter(sweep.quiet)
        self.stop = StopRequest(self.reporter.say)
        self.cache = Cache()
        self.origin = SweepOrigin.of(sweep)
        self.weights: Mapping[str, Any] | None = None      # of the supernet, once it is trained
        self.surrogates = (None if sweep.predictor is None
                           else Surrogates(sweep.space, sweep.objectives, sweep.predictor, journal))
        self.began = time.monotonic() - seconds_spent(journal)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.callback(self.reporter.end)
            exits.enter_context(self.stop.listening())
            exits.enter_context(self.tracker)
            exits.enter_context(self._mirror)
            self._exits = exits.pop_all()
        self.journal.append("session", {"pid": os.getpid(), "host": platform.node(),
                                        "python": platform.python_version()})
        self._fill_cache()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._exits.__exit__(kind, error, trace)

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """The workers, brought up on first use; by then the supernet's weights must be there."""
        self._exits.enter_context(self.executor)
        self.executor.start(self.sweep.evaluator(self.weights))
        return Dispatcher(self.executor, self.stop)

    @property
    def deadline(self) -> float | None:
        """When (`time.monotonic`) the search stops asking, earlier runs counted."""
        return None if self.sweep.hours is None else self.began + 3600 * self.sweep.hours

    @property
    def metric(self) -> Criterion | None:
        """The objective that is the task's held-out metric, None when no objective is."""
        from ..evaluators.objectives import HeldOutMetric

        return next((Criterion.of(objective) for objective in self.sweep.objectives
                     if isinstance(objective.evaluate, HeldOutMetric)), None)

    def ledger(self, stream: str) -> Ledger:
        return Ledger.read(self.journal, stream, self.objectives)

    def front(self, stream: str = "search") -> Front:
        return Front.from_journal(self.journal, self.origin, stream)

    def evaluate(self, event: str, kind: str, fidelity: Mapping[str, Any], subjects: Sequence[Subject],
                 needed: Sequence[Criterion], name: str,
                 folder: Path | None = None, replicate: int = 0,
                 trained: Path | None = None, stream: str = "search",
                 again: bool = False) -> dict[int, Mapping[str, Any]]:
        """Jobs of one kind for some candidates, each result an event; what the journal holds is not done again.

        Args:
            event: the kind of the events.
            kind: the kind of the jobs, as the evaluator understands it.
            needed: the objectives a result must have, or else it counts as failed.
            name: of the stage, for people.
            folder: where to keep the weights of those trained alone, `<hash>.safetensors`.
            replicate: the number of the repetition, with a seed of its own.
            trained: where the weights of these candidates are, so that none is trained.
            stream: which the events belong to.
            again: whether those that failed in an earlier run are tried again.

        Returns:
            The results' bodies by candidate number, failed ones included.
        """
        wanted = {subject.number: subject for subject in subjects}
        done: dict[int, Mapping[str, Any]] = {
            body["number"]: body for body in (e.body for e in self.journal.events(event))
            if body["number"] in wanted and body["fidelity"] == fidelity and body["replicate"] == replicate
            and not (again and body["state"] == "failed")}
        jobs = [(subject, self._job(kind, subject, fidelity, {**saving(folder, subject.hash, "save"),
                                                              **saving(trained, subject.hash, "trained")}, replicate))
                for subject in subjects if subject.number not in done]
        outcomes = self.dispatcher.each(jobs) if jobs else iter(())
        if jobs:
            self.reporter.begin(name, len(wanted), len(done))
        for subject, job, outcome in outcomes:
            assert isinstance(subject, Subject)
            body = {"number": subject.number, "hash": subject.hash, "genome": subject.genome.to_json(),
                    **result_body(job, outcome, needed), "fidelity": dict(fidelity)}
            self.journal.append(event, body, stream)
            done[subject.number] = body
            self.reporter.advance(len(done))
        self.reporter.end()
        return done

    def _job(self, kind: str, subject: Subject, fidelity: Mapping[str, Any], files: Mapping[str, str], replicate: int) -> Job:
        seed = evaluation_seed(self.sweep.seed, subject.genome, fidelity, replicate)
        return Job(0, kind, subject.genome, seed, {**fidelity, **files}, replicate)

    def _fill_cache(self) -> None:
        for trial in self.journal.events("probe"):
            self.cache.put(trial.body["hash"], trial.body)
        hashes = {trial.number: trial.hash for trial in self.journal.trials()}
        for event in self.journal.events("result"):
            self.cache.put(hashes[event.body["number"]], event.body)


class Surroundings:
    """What a run needs from outside: workers, trackers. Made before the sweep's directory, so that what cannot be
    reached leaves nothing behind.
    """

    def __init__(self, sweep: Sweep):
        self.executor = _executor(sweep)
        self.tracker: Any = _NoTracker()
        if sweep.tracking:
            from .tracking import MLflowTracker

            self.tracker = MLflowTracker(sweep.directory, None if sweep.tracking is True else sweep.tracking)
        self.mirror: Any = nullcontext()
        if sweep.optuna_storage is not None:
            from .mirror import OptunaMirror

            criteria = [Criterion.of(objective) for objective in sweep.objectives]
            self.mirror = OptunaMirror(sweep.optuna_storage, sweep.directory, sweep.space, criteria)


class _NoTracker(nullcontext[None]):
    """Stands in where tracking is off."""

    def notice(self) -> None:
        """A result was written to the journal."""

    def lines(self) -> list[str]:
        """What to say at the end."""
        return []


def _executor(sweep: Sweep) -> Executor:
    if not isinstance(sweep.executor, str):
        return sweep.executor
    options: dict[str, Any] = {"workers": sweep.workers, "timeout": sweep.timeout, "memory_gb": sweep.memory_gb,
                               "address": sweep.address}
    if sweep.executor == "ray" and sweep.device == "cuda":
        options["gpus"] = 1
    if sweep.executor == "local":
        options["log_directory"] = sweep.directory / "logs"
    return make_executor(sweep.executor, **{name: value for name, value in options.items() if value is not None})
