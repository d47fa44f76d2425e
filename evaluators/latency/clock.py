"""Timing a call: warm-up until the times have settled, then repeats inside a time budget.

CPU calls are timed by a stopwatch that stands still while other processes run, with a reference between the repeats, and
given for its usual speed (see `reference.py`). CUDA calls are timed by events with the stream synchronised after every
repeat, so that launch gaps of the host are part of the number; a replayed graph has none.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..devices import check_device
from ..objectives import Estimate
from .reference import Reference, reference_for, stopwatch
from .spread import Measurement, middle, outliers, summary

__all__ = ["Work", "measure", "measured", "repeated"]

WINDOW = 5        # repeats compared with the previous ones to tell whether the warm-up has settled
SETTLED = 0.05    # fall of the window's median, as a share, from which it has not
MOST_REPEATS = 400
BETWEEN = 2.0     # times of the reference that repeats last from one of its runs to the next


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
    """Median time of any `call` by the clock, in milliseconds, with a bootstrap 95 % interval; see `measured`."""
    found = measured(call, check_device(device), budget_ms, least, usual_speed=False)
    return Estimate(found.median_ms, found.low_ms, found.high_ms, found.note)


def measured(call: Callable[[], Any] | Work, device: torch.device, budget_ms: float = 50.0,
             least: int = 3, usual_speed: bool = True) -> Measurement:
    """Time `call` on a device that is there. usual_speed: where the device has a reference, for the speed of that.

    Warm-up lasts until a window of repeats is no longer 5 % faster than the one before, at most one budget; then repeats
    are timed for one budget, `least` at least and 400 at most. Without gradients unless the work has them, garbage
    collection paused.
    """
    work = call if isinstance(call, Work) else Work(call)
    reference = reference_for(device) if usual_speed else None
    walls: list[float] = []
    timer = event_timer(device) if device.type == "cuda" else clock_timer(device, None if reference is None else walls)
    with torch.inference_mode(not work.grads), uncollected():
        found = repeated(lambda: timer(work), budget_ms, least, work.first, reference)
    return found if reference is None else replace(found, clock_ms=middle(sorted(walls[-found.repeats:])))


def repeated(once: Callable[[], float], budget_ms: float, least: int = 3, first: int = 0,
             reference: Reference | None = None) -> Measurement:
    """The measurement that calls of `once` make, each of which gives its milliseconds."""
    for _ in range(first):
        once()
    warm, settled = settle(once, budget_ms)
    if reference is not None:
        return at_usual_speed(list(between(once, reference, budget_ms, least)), first + warm, settled)
    times: list[float] = []
    while len(times) < least or (sum(times) < budget_ms and len(times) < MOST_REPEATS):
        times.append(once())
    return summary(times, first + warm, settled)


def between(once: Callable[[], float], reference: Reference, budget_ms: float,
            least: int = 3) -> Iterator[tuple[float, list[float]]]:
    """Groups of repeats, each with the machine's speed beside it: 1 where the reference takes its usual time, 0.5 where it
    takes twice that. A group lasts a few times as long as the reference, and there are `least` at least."""
    before, spent, groups, calls = reference.timed(), 0.0, 0, 0
    while groups < least or (spent < budget_ms and calls < MOST_REPEATS):
        times = [once()]
        while sum(times) < BETWEEN * before and len(times) < MOST_REPEATS // 4:
            times.append(once())
        after = reference.timed()
        yield 2 * reference.usual_ms / (before + after), times
        before, spent, groups, calls = after, spent + sum(times), groups + 1, calls + len(times)


def at_usual_speed(groups: Sequence[tuple[float, list[float]]], warmup: int, settled: bool) -> Measurement:
    """The measurement of groups of repeats, each moved to the usual speed. The number is the median of the groups' medians,
    its interval that of resampled groups: repeats of a group share the error of the speed beside them."""
    moved = [[speed * t for t in times] for speed, times in groups]
    found = summary([middle(sorted(times)) for times in moved], warmup, settled)
    every = [t for times in moved for t in times]
    return replace(found, repeats=len(every), outliers=len(outliers(every)), slowest_ms=max(every),
                   clock_ms=middle(sorted(t for _, times in groups for t in times)),
                   speed=middle(sorted(speed for speed, _ in groups)))


def settle(once: Callable[[], float], budget_ms: float) -> tuple[int, bool]:
    """Call until a window of calls is no longer faster than the one before or the budget is spent: how many calls that
    took, and whether it was so.

    A budget that ends before there were two windows tells nothing, and is not held against the machine.
    """
    times: list[float] = [once()]
    while sum(times) < budget_ms and len(times) < MOST_REPEATS:
        times.append(once())
        if len(times) >= 2 * WINDOW:
            now, before = middle(sorted(times[-WINDOW:])), middle(sorted(times[-2 * WINDOW:-WINDOW]))
            if now >= (1 - SETTLED) * before:
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


def clock_timer(device: torch.device, walls: list[float] | None = None) -> Callable[[Work], float]:
    """Milliseconds of a piece of work by the clock, or by `stopwatch` where there is a list for what the clock says."""
    if walls is not None:
        watch = stopwatch()

        def watched(work: Work) -> float:
            work.before()
            counted, wall = watch(work.run)
            walls.append(wall)
            return counted
        return watched
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
