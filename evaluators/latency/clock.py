"""Timing a call: warm-up until the times have settled, then repeats inside a time budget.

CPU calls are timed by the monotonic clock, CUDA calls by events with the stream synchronised after every repeat, so that
launch gaps of the host are part of the number; a replayed graph has none.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..devices import check_device
from ..objectives import Estimate
from .spread import Measurement, middle, summary

__all__ = ["Work", "measure", "measured", "repeated"]

WINDOW = 5        # repeats compared with the previous ones to tell whether the warm-up has settled
SETTLED = 0.05    # relative change of the window's median below which it has
MOST_REPEATS = 400


def nothing() -> None:
    """What precedes a call that needs no preparation."""


@dataclass(frozen=True)
class Work:
    """What is timed: `run`, after `before`, which is not. first: calls that come before the warm-up (a compilation).

    grads: whether gradients are computed.
    """

    run: Callable[[], Any]
    before: Callable[[], Any] = nothing
    first: int = 0
    grads: bool = False


def measure(call: Callable[[], Any] | Work, device: str = "cpu", budget_ms: float = 50.0, least: int = 3) -> Estimate:
    """Median time of `call` in milliseconds with a bootstrap 95 % interval; see `measured`."""
    found = measured(call, check_device(device), budget_ms, least)
    return Estimate(found.median_ms, found.low_ms, found.high_ms, found.note)


def measured(call: Callable[[], Any] | Work, device: torch.device, budget_ms: float = 50.0,
             least: int = 3) -> Measurement:
    """Time `call` on a device that is there.

    Warm-up lasts until two windows of repeats agree within 5 %, at most one budget; then repeats are timed for one
    budget, `least` at least and 400 at most. Without gradients unless the work has them, garbage collection paused.
    """
    work = call if isinstance(call, Work) else Work(call)
    timer = event_timer(device) if device.type == "cuda" else clock_timer(device)
    with torch.inference_mode(not work.grads), uncollected():
        return repeated(lambda: timer(work), budget_ms, least, work.first)


def repeated(once: Callable[[], float], budget_ms: float, least: int = 3, first: int = 0) -> Measurement:
    """The measurement that calls of `once` make, each of which gives its milliseconds."""
    for _ in range(first):
        once()
    warm, settled = settle(once, budget_ms)
    times: list[float] = []
    while len(times) < least or (sum(times) < budget_ms and len(times) < MOST_REPEATS):
        times.append(once())
    return summary(times, first + warm, settled)


def settle(once: Callable[[], float], budget_ms: float) -> tuple[int, bool]:
    """Call until two neighbouring windows agree or the budget is spent: how many calls that took, and whether they did.

    A budget that ends before there were two windows tells nothing, and is not held against the machine.
    """
    times: list[float] = [once()]
    while sum(times) < budget_ms and len(times) < MOST_REPEATS:
        times.append(once())
        if len(times) >= 2 * WINDOW:
            now, before = middle(sorted(times[-WINDOW:])), middle(sorted(times[-2 * WINDOW:-WINDOW]))
            if abs(now - before) <= SETTLED * before:
                return len(times), True
    return len(times), len(times) < 4 * WINDOW


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def clock_timer(device: torch.device) -> Callable[[Work], float]:
    """Milliseconds of a piece of work by the monotonic clock."""
    wait = torch.mps.synchronize if device.type == "mps" else nothing

    def timed(work: Work) -> float:
        work.before()
        wait()
        start = time.perf_counter_ns()
        work.run()
        wait()
        return (time.perf_counter_ns() - start) / 1e6
    return timed


def event_timer(device: torch.device) -> Callable[[Work], float]:
    """Milliseconds of a piece of work between two events of the device's stream, which is idle before and after."""
    def timed(work: Work) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))       # type: ignore[no-untyped-call]
            work.before()
            torch.cuda.synchronize(device)
            start.record()
            work.run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end))
    return timed
