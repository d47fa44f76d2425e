"""A few evaluations made as a sweep would make them, and what they took: seconds, memory, turns on the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .executors.base import Executor, Job, Outcome, make_executor
from .seeds import evaluation_seed

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Memory", "Rehearsal", "gpu_bytes", "gpu_peak", "machine_bytes", "own_memory", "rehearse"]

PEAK = "peak"               # the kind of job that asks a worker for its memory
BRIEF_SECONDS = 1.0         # a first evaluation that is shorter is mostly first calls, and is made again


@dataclass(frozen=True)
class Memory:
    """Bytes of a process. peak: most that was resident since it began. shared: what other processes map as well, such as
    torch's libraries. gpu: most that torch took of the device it computes on, None where it computes on a CPU."""

    peak: float
    shared: float
    gpu: float | None = None


@dataclass(frozen=True)
class Rehearsal:
    """Means over the smallest and the largest candidate, seconds. alone: of `seconds`, measured with the machine to itself.
    scoring: of `seconds`, on the task's held-out split, which waits while another evaluation measures. start: until a worker
    is ready. memory: of the worker, after both. failures: reasons."""

    seconds: float
    alone: float = 0.0
    scoring: float = 0.0
    start: float = 0.0
    memory: Memory | None = None
    failures: tuple[str, ...] = ()


def rehearse(sweep: Sweep, weights: Any) -> Rehearsal:
    """Evaluate the smallest and the largest candidate, in a child process where the sweep has workers of its own.

    What a worker on Ray takes is estimated by such a child, whose weights are a copy of its own.
    """
    smallest, largest = (Job(0, "score", genome, evaluation_seed(sweep.seed, genome, sweep.fidelity), sweep.fidelity)
                         for genome in (sweep.space.smallest(), sweep.space.largest()))
    with _executor(sweep) as executor:
        began = time.perf_counter()
        executor.start(_Watched(sweep.evaluator(weights), sweep.device))
        start = time.perf_counter() - began
        first = _ask(executor, smallest)
        if first.seconds < BRIEF_SECONDS:
            first = _ask(executor, smallest)
        outcomes = [first, _ask(executor, largest)]
        last = _ask(executor, replace(smallest, kind=PEAK))
    spent = [outcome.values["extra"][PEAK] for outcome in outcomes if outcome.values]
    alone, scoring = (sum(one[part] for one in spent) / max(1, len(spent)) for part in ("alone", "scoring"))
    return Rehearsal(sum(outcome.seconds for outcome in outcomes) / len(outcomes), alone, scoring, start,
                     Memory(**last.values["extra"][PEAK]) if last.values else None,
                     tuple(outcome.failure.reason for outcome in outcomes if outcome.failure))


def _executor(sweep: Sweep) -> Executor:
    """A worker like the sweep's; executors of the user's own are not started, their evaluator runs here."""
    if sweep.executor_name in ("local", "ray"):
        return make_executor("local", workers=1, timeout=sweep.timeout)
    return make_executor("inline")


def _ask(executor: Executor, job: Job) -> Outcome:
    executor.submit(job)
    return executor.next()


class _Timed:
    """An objective's function, and how long it took."""

    def __init__(self, call: Callable[..., Any]):
        self.call, self.seconds = call, 0.0

    def __call__(self, *given: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.call(*given)
        finally:
            self.seconds += time.perf_counter() - began


class _Watched:
    """The evaluator of a sweep, which says beside its values what they took."""

    def __init__(self, evaluator: Any, device: str):
        from ..evaluators.objectives import HeldOutMetric

        self.evaluator, self.device = evaluator, device
        self.clocks: dict[str, list[_Timed]] = {"alone": [], "scoring": []}
        timed = []
        for objective in evaluator.objectives:
            clock = _Timed(objective.evaluate)
            if objective.device is not None:
                self.clocks["alone"].append(clock)
            elif isinstance(objective.evaluate, HeldOutMetric):
                self.clocks["scoring"].append(clock)
            timed.append(replace(objective, evaluate=clock))
        evaluator.objectives = tuple(timed)

    def setup(self) -> None:
        self.evaluator.setup()

    def run(self, job: Job) -> dict[str, Any]:
        if job.kind == PEAK:
            memory = own_memory()
            return {"extra": {PEAK: vars(replace(memory, gpu=gpu_peak(self.device)))}}
        for clock in (*self.clocks["alone"], *self.clocks["scoring"]):
            clock.seconds = 0.0
        answer: dict[str, Any] = self.evaluator.run(job)
        spent = {part: sum(clock.seconds for clock in clocks) for part, clocks in self.clocks.items()}
        return {**answer, "extra": {**answer["extra"], PEAK: spent}}


def own_memory() -> Memory:
    """Of this process, without a GPU's."""
    now = psutil.Process().memory_info()
    return Memory(float(_peak_resident(now)), float(getattr(now, "shared", 0)))


def _peak_resident(now: Any) -> int:
    """Linux: /proc knows the peak of this program; `ru_maxrss` also holds that of the process it was started from."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if hasattr(now, "peak_wset"):
        return int(now.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gpu_peak(device: str) -> float | None:
    """The most that torch took of a GPU in this process, None where it computes elsewhere."""
    if not device.startswith("cuda"):
        return None
    import torch

    return float(torch.cuda.max_memory_allocated(device))


def gpu_bytes(device: str) -> int:
    """Memory of a GPU."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def machine_bytes() -> int:
    """Memory of this machine, or what its container may use of it."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).exists() else ""
        if text.isdigit():
            total = min(total, int(text))
    return total
