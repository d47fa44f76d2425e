"""Evaluation in this process, when `next` is called, without isolation."""

from __future__ import annotations

from collections import deque

from ...errors import BodyplanError
from .base import Evaluator, Executor, Job, Outcome, attempt

__all__ = ["InlineExecutor"]


class InlineExecutor(Executor):
    """The right one when every objective is a cheap function: no start-up, microseconds per job.

    A candidate that raises is a failed trial. A candidate that hangs or dies takes the sweep with it, and
    torch runs with whatever threads this process has; use "local" where that matters. What
    `Evaluator.setup` raises comes out of `start` unchanged.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._evaluator: Evaluator | None = None

    @property
    def capacity(self) -> int:
        return 1

    def start(self, evaluator: Evaluator) -> None:
        evaluator.setup()
        self._evaluator = evaluator

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def next(self, timeout: float | None = None) -> Outcome:
        """Run the oldest job and return its outcome; `timeout` cannot interrupt it and is ignored."""
        assert self._evaluator is not None, "start() comes first"
        if not self._jobs:
            raise BodyplanError("no job is in flight: submit one before calling next()")
        return attempt(self._evaluator, self._jobs.popleft(), "inline")

    def close(self) -> None:
        self._jobs.clear()
        self._evaluator = None
