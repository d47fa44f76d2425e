"""News of a training on other processes, passed on in this one; and the word to stop, passed on there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["Progress", "Stopped", "Teller", "watched"]

EVERY = 0.2                 # seconds between two pieces of news; asking the relay takes the worker about a millisecond
FAREWELL_SECONDS = 60.0     # how long a stopped training may take to finish its step and write its checkpoint

Progress = Callable[[int, int, float], None]
News = tuple[int, int, float]


class Stopped(Exception):
    """Ends a training that was asked to stop; its checkpoint is written on the way out."""


class Relay:
    """What lives in an actor between the first worker and the process that waits for it."""

    def __init__(self) -> None:
        self.news: News | None = None
        self.is_stopped = False

    def tell(self, news: News) -> bool:
        """Called by the worker; whether it is to stop."""
        self.news = news
        return self.is_stopped

    def hear(self) -> News | None:
        """Called by the process that waits: the newest news."""
        return self.news

    def stop(self) -> None:
        """Called by the process that waits: the worker stops when it next has news."""
        self.is_stopped = True


@dataclass
class Teller:
    """The `progress` of a training in a worker."""

    relay: Any
    last: float = 0.0

    def __call__(self, done: int, steps: int, loss: float) -> None:
        import ray

        now = time.monotonic()
        if done < steps and now - self.last < EVERY:
            return
        self.last = now
        if ray.get(self.relay.tell.remote((done, steps, loss))):
            raise Stopped(f"stopped after step {done}")


def watched(ray: ModuleType, run: Callable[[Teller], Any], progress: Progress | None) -> Any:
    """`run(teller)` in a thread, with `progress` called here: a few times a second, and after the last step.

    What `progress` raises stops the training and is raised here once its checkpoint is written. In a thread, since Ray
    Train takes over Ctrl-C for good where it runs in the main one.
    """
    relay = ray.remote(Relay).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    answer: Future[Any] = Future()
    thread = threading.Thread(target=_answer, args=(answer, run, Teller(relay)), daemon=True)
    thread.start()
    try:
        _listen(ray, relay, answer, progress)
    except BaseException:
        ray.get(relay.stop.remote())
        thread.join(FAREWELL_SECONDS)
        raise
    return answer.result()


def _answer(answer: Future[Any], run: Callable[[Teller], Any], teller: Teller) -> None:
    try:
        answer.set_result(run(teller))
    except BaseException as error:                          # raised again by the thread that waits
        answer.set_exception(error)


def _listen(ray: ModuleType, relay: Any, answer: Future[Any], progress: Progress | None) -> None:
    """Pass news on until the answer is there."""
    heard, is_done = None, False
    while not is_done:
        is_done = bool(wait([answer], EVERY).done)          # asked before the news, so that the last are heard
        if progress is None or (is_done and answer.exception()):
            continue
        news = ray.get(relay.hear.remote())
        if news != heard:
            heard = news
            progress(*news)
