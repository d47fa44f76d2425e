"""Outcomes in the order the jobs were submitted, over any executor."""

from __future__ import annotations

import time
from collections import deque

from .base import Evaluator, Executor, Job, Outcome

__all__ = ["AskOrder", "in_ask_order"]


class AskOrder(Executor):
    """Another executor's outcomes, delivered in the order the jobs were submitted.

    A slow job holds back the faster ones submitted after it; they wait here. With it and a fixed number in
    flight, a sweep over deterministic objectives makes the same trials on every executor.
    """

    def __init__(self, executor: Executor):
        self._executor = executor
        self._order: deque[int] = deque()
        self._early: dict[int, Outcome] = {}

    @property
    def capacity(self) -> int:
        return self._executor.capacity

    def start(self, evaluator: Evaluator) -> None:
        self._executor.start(evaluator)

    def submit(self, job: Job) -> None:
        self._executor.submit(job)
        self._order.append(job.id)

    def next(self, timeout: float | None = None) -> Outcome:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._order or self._order[0] not in self._early:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            outcome = self._executor.next(left)
            self._early[outcome.id] = outcome
        return self._early.pop(self._order.popleft())

    def close(self) -> None:
        self._executor.close()


def in_ask_order(executor: Executor) -> Executor:
    """`executor`, delivering in the order of submission."""
    return executor if isinstance(executor, AskOrder) else AskOrder(executor)
