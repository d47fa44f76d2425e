"""Handing jobs to an executor a few at a time, so that a stop request finds nothing waiting in a queue."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from .executors.base import Executor, Job, Outcome

__all__ = ["Dispatcher", "StopRequest"]


class StopRequest:
    """Turns the first Ctrl-C into a flag and lets the second through."""

    def __init__(self, announce: Callable[[str], None] = lambda text: None):
        self.requested = False
        self._announce = announce

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch SIGINT inside the block. Only the main thread receives signals; elsewhere this does
        nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._announce("stopping: what is running is finished first; press Ctrl-C again to stop at once")

    def check(self) -> None:
        """Raise KeyboardInterrupt when a stop was asked for: called where nothing is half done."""
        if self.requested:
            raise KeyboardInterrupt


class Dispatcher:
    """Jobs in, outcomes out, each with the key it was added under; at most `capacity` jobs are with the
    executor."""

    def __init__(self, executor: Executor, stop: StopRequest):
        self._executor = executor
        self._stop = stop
        self._waiting: deque[tuple[Hashable, Job]] = deque()
        self._running: dict[int, tuple[Hashable, Job]] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, key: Hashable, job: Job) -> None:
        """Queue a job; its id is replaced by one that is unique in this process."""
        self._waiting.append((key, job))
        self._feed()

    def next(self) -> tuple[Hashable, Job, Outcome]:
        """The next outcome, in order of completion. Raises KeyboardInterrupt once a requested stop has
        drained."""
        self._feed()
        if not self._running:
            self._stop.check()
            raise AssertionError("next() without a job")
        outcome = self._executor.next()
        key, job = self._running.pop(outcome.id)
        return key, job, outcome

    def each(self, jobs: Iterable[tuple[Hashable, Job]]) -> Iterator[tuple[Hashable, Job, Outcome]]:
        """Run all of some jobs."""
        for key, job in jobs:
            self.add(key, job)
        while len(self):
            yield self.next()

    def _feed(self) -> None:
        while self._waiting and len(self._running) < self._executor.capacity and not self._stop.requested:
            key, job = self._waiting.popleft()
            job = replace(job, id=self._next_id)
            self._next_id += 1
            self._running[job.id] = (key, job)
            self._executor.submit(job)
