"""What every pool of workers does alike: jobs wait in it, outcomes are handed out, time limits are kept."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from typing import Generic, Protocol, TypeVar

from ...errors import BodyplanError
from .base import Executor, Job, Outcome, check_limit

__all__ = ["Pool", "Worker"]


class Worker(Protocol):
    """What a pool knows of its workers: the job one is running, and since when (`time.monotonic`)."""

    job: Job | None
    started: float


W = TypeVar("W", bound=Worker)


class Pool(Executor, Generic[W]):
    """Jobs wait here and not in the workers, so that a lost worker costs the one job it was running.

    A pool keeps its `_workers`, hands `_waiting` jobs to idle ones in `_dispatch`, and in `_turn` sleeps until something
    happens, deals with it and appends to `_done`.
    """

    def __init__(self, timeout: float | None):
        self._timeout = check_limit("timeout", timeout, "s")
        self._workers: list[W] = []
        self._waiting: deque[Job] = deque()
        self._done: deque[Outcome] = deque()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        self._dispatch()

    def next(self, timeout: float | None = None) -> Outcome:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._done:
            if not self._waiting and not any(worker.job for worker in self._workers):
                raise BodyplanError("no job is in flight: submit one before calling next()")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"no outcome within {timeout:g} s")
            self._turn(deadline)
        return self._done.popleft()

    @abstractmethod
    def _dispatch(self) -> None:
        """Hand waiting jobs to workers that are free."""

    @abstractmethod
    def _turn(self, deadline: float | None) -> None:
        """Sleep until a worker speaks, a limit is reached or `deadline`; then deal with all of it."""

    def _moments(self, deadline: float | None) -> list[float]:
        """Until when to sleep at most: the caller's patience, and the time of every running job."""
        moments = [] if deadline is None else [deadline]
        if self._timeout is not None:
            moments += [worker.started + self._timeout for worker in self._workers if worker.job]
        return moments

    def _overdue(self) -> list[tuple[W, str]]:
        """The workers whose job has used up its time, with the reason to give for it."""
        if self._timeout is None:
            return []
        now, reason = time.monotonic(), f"timeout after {self._timeout:g} s"
        return [(worker, reason) for worker in self._workers if worker.job and now - worker.started >= self._timeout]
