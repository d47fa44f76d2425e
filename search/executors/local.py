"""Evaluation in child processes of this machine, each with limits of its own."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import time
from pathlib import Path
from typing import BinaryIO

import cloudpickle

from ...errors import BodyplanError
from .base import Evaluator, Failure, Outcome, available_cpus, check_count, check_limit
from .child import Child, anonymous_file
from .pool import Pool

__all__ = ["LocalExecutor"]

_LIVENESS_SECONDS = 1.0     # how often lost children are looked for whose pipe a process of theirs holds open
_MEMORY_SECONDS = 0.1       # how often memory is looked at, where it is limited
_FAREWELL_SECONDS = 2.0     # how long idle children may take to leave before they are killed
_SETUP_DEATHS = 3           # how many children in a row may be killed while setting up


class LocalExecutor(Pool[Child]):
    """A pool of child processes, the default when something trains.

    A candidate that raises, calls `sys.exit`, hangs, outgrows its memory, or kills its process becomes a
    failed trial; the worker is replaced and the others go on. The children live in sessions of their own: Ctrl-C does not
    reach them; `close` and the death of this process, however sudden, end them and the processes they
    started.

    Args:
        workers: how many children; None takes one per available CPU.
        timeout: seconds one job may run before its worker is killed; the failure carries the stack it hung
            at.
        memory_gb: resident memory (10^9 bytes) of one worker before it is killed; looked at ten times a
            second.
        threads: what torch, OpenMP and the BLAS libraries may use in each child.
        log_directory: where each child's output is appended, `<worker>.log`; None sends it to standard error.
    """

    def __init__(self, workers: int | None = None, timeout: float | None = None,
                 memory_gb: float | None = None, threads: int = 1,
                 log_directory: str | os.PathLike[str] | None = None):
        super().__init__(timeout)
        self._count = available_cpus() if workers is None else check_count("workers", workers)
        self._memory_gb = check_limit("memory_gb", memory_gb, "GB")
        self._threads = check_count("threads", threads)
        self._logs = None if log_directory is None else Path(log_directory)
        self._evaluator: BinaryIO | None = None
        self._selector = selectors.DefaultSelector()
        self._setup_deaths = 0
        self._next_memory_look = 0.0

    @property
    def capacity(self) -> int:
        return self._count

    def start(self, evaluator: Evaluator) -> None:
        assert self._evaluator is None, "an executor is started once"
        self._evaluator = anonymous_file(_pickled(evaluator))
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for index in range(self._count):
                self._hire(f"local-{index}")
            while not any(child.ready for child in self._workers):
                self._turn(None)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        idle = [child for child in self._workers if child.is_idle]
        limit = time.monotonic() + _FAREWELL_SECONDS
        for child in idle:
            child.dismiss()
        for child in idle:
            child.wait(max(0.0, limit - time.monotonic()))
        for child in self._workers:
            self._selector.unregister(child.outcomes)
            child.bury()
        self._workers.clear()
        self._waiting.clear()
        self._selector.close()
        if self._evaluator:
            self._evaluator.close()

    def _hire(self, name: str) -> None:
        assert self._evaluator is not None
        child = Child(name, self._evaluator, self._threads, self._logs)
        self._workers.append(child)
        self._selector.register(child.outcomes, selectors.EVENT_READ, child)

    def _dispatch(self) -> None:
        for child in self._workers:
            if not self._waiting:
                return
            if child.is_idle and child.take(self._waiting[0]):
                self._waiting.popleft()

    def _turn(self, deadline: float | None) -> None:
        for key, _ in self._selector.select(self._patience(deadline)):
            self._listen(key.data)
        for child in list(self._workers):
            if child.deaf or not child.is_alive:
                self._replace(child)
        self._enforce_limits()
        self._dispatch()

    def _patience(self, deadline: float | None) -> float:
        now = time.monotonic()
        moments = [now + _LIVENESS_SECONDS, *self._moments(deadline)]
        if self._memory_gb is not None and any(child.job for child in self._workers):
            moments.append(self._next_memory_look)
        return max(0.0, min(moments) - now)

    def _listen(self, child: Child) -> None:
        for message in child.messages():
            if "ready" in message:
                child.ready = True
                self._setup_deaths = 0
            elif "begun" in message:
                child.begun = True
            else:
                child.job = None
                self._done.append(Outcome.from_json(message["outcome"]))

    def _enforce_limits(self) -> None:
        for child, reason in self._overdue():
            self._stop(child, reason)
        if self._memory_gb is None or time.monotonic() < self._next_memory_look:
            return
        self._next_memory_look = time.monotonic() + _MEMORY_SECONDS
        for child in [child for child in self._workers if child.job]:
            if (used := child.memory_gb) > self._memory_gb:
                self._stop(child, f"memory limit: {used:.2f} GB used, {self._memory_gb:g} GB allowed")

    def _stop(self, child: Child, reason: str) -> None:
        child.dump_stack()
        self._replace(child, reason)

    def _replace(self, child: Child, reason: str | None = None) -> None:
        """Bury a child, answer for the job it was running, and put a new one in its place."""
        self._listen(child)                                 # it may have finished just before
        self._selector.unregister(child.outcomes)
        self._workers.remove(child)
        words = child.last_words()
        status = child.bury()
        if child.job and not (child.begun or reason):
            self._waiting.appendleft(child.job)             # it was lost before it could begin
        elif child.job:
            seconds = time.monotonic() - child.started
            failure = Failure(reason or f"worker {_manner(status)}", words)
            self._done.append(Outcome(child.job.id, None, failure, seconds, child.name))
        elif not child.ready:
            self._count_setup_death(child.name, status, words)
        self._hire(child.name)

    def _count_setup_death(self, name: str, status: int, words: str) -> None:
        """A set-up that raises fails again; one that is killed (out of memory, perhaps) may succeed later."""
        self._setup_deaths += 1
        if status >= 0 or self._setup_deaths >= _SETUP_DEATHS:
            text = f"the evaluator could not be set up: worker {name} {_manner(status)}\n{words}"
            raise BodyplanError(text.rstrip())


def _pickled(evaluator: Evaluator) -> bytes:
    try:
        payload: bytes = cloudpickle.dumps(evaluator, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(f"an evaluator must pickle to reach other processes: {type(evaluator).__name__} does "
                        f"not ({error}); open files, locks and connections in setup() instead") from error
    return payload


def _manner(status: int) -> str:
    """How a process ended, from its exit status."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
