"""What a whole sweep would take, from what a few of its evaluations and steps took.

Arithmetic over a `Rehearsal` and a `Training`; nothing is evaluated here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from .definition import space_size
from .executors.base import available_cpus
from .rehearsal import Memory, Rehearsal, gpu_bytes, machine_bytes, own_memory

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Training", "gpu_estimate", "memory_estimate", "pace", "seconds_estimate", "warnings_of", "workers_of"]

_RAY_SECONDS = 10.0         # to start a Ray, once for the evaluations and once for workers that train a supernet together
_RAY_BYTES = 0.5e9          # of a private Ray's own processes, and what its library takes of this one
_END_SECONDS = 5.0          # to export and test the knee
_MLFLOW_SECONDS = 5.0       # to load MLflow and set up its store
_RUN_BYTES = 0.05e9         # what a run loads besides: journal, export, report
_MLFLOW_BYTES = 0.24e9      # and with tracking: MLflow
_PROBES = 3                 # besides the smallest and the largest candidate


class Training(NamedTuple):
    """The shared weights after a few steps, seconds of a step, and what the process took."""

    weights: Any = None
    step: float | None = None
    memory: Memory | None = None


def workers_of(sweep: Sweep) -> int:
    """How many evaluations run at a time."""
    if sweep.executor == "inline":
        return 1
    if isinstance(sweep.executor, str):
        return sweep.workers or available_cpus()
    return sweep.executor.capacity


def _share(sweep: Sweep) -> float:
    """The part of a step's work that falls to each of the workers that train the supernet."""
    from ..evaluators.distributed import Group
    from ..evaluators.strategies import resolve

    visits = len(list(resolve(sweep.supernet_strategy).visits(sweep.space, 0, sweep.supernet_steps, sweep.seed)))
    return sum(1 / share.parts for share in Group(0, sweep.supernet_workers).deal(visits)) / visits


def seconds_estimate(sweep: Sweep, tried: Rehearsal, per_step: float | None, workers: int) -> float | None:
    """Before the search, its evaluations, and what follows."""
    if sweep.trials is None:
        return None
    size = space_size(sweep.space)
    trials = sweep.trials if size is None else min(sweep.trials, int(size))
    probes = 0 if None not in sweep.declared_reference else 2 + _PROBES + len(sweep.initial)
    each = pace(tried, workers)
    before = tried.start + _RAY_SECONDS * (sweep.executor_name == "ray") + _MLFLOW_SECONDS * bool(sweep.tracking)
    after = (trials * each if sweep.twin else 0.0) + _tests(sweep, tried, trials, workers) + _END_SECONDS * sweep.trains
    if per_step is not None:
        # a sandwich step visits three subnets of about a third of the largest's cost; one alone costs about a third
        alone = sweep.steps * per_step / 3 + 2 * tried.scoring                  # on both held-out splits
        after += (sweep.retrain + sweep.fidelity_sample) * alone / workers
        before += sweep.supernet_steps * per_step * _share(sweep) + _RAY_SECONDS * (sweep.supernet_workers > 1)
    search = before + (probes + trials) * each
    return after + (search if sweep.hours is None else min(search, sweep.hours * 3600))


def pace(tried: Rehearsal, workers: int) -> float:
    """Seconds from one result to the next: as fast as all workers are, and as the machine is free for those that measure."""
    together = tried.seconds / workers
    return max(together, tried.alone + tried.scoring / workers) if tried.alone else together


def _tests(sweep: Sweep, tried: Rehearsal, trials: int, workers: int) -> float:
    """The front's scores on the test split: as long as evaluations without what is measured, trainings alone included.
    Of n candidates whose objectives are independent, (ln n)^(d-1) / (d-1)! are on the front of d objectives."""
    if not sweep.trains:
        return 0.0
    others = len(sweep.objectives) - 1
    front = min(trials, math.ceil(max(1.0, math.log(trials)) ** others / math.factorial(others)))
    return front * (tried.scoring if sweep.inherit else tried.seconds - tried.alone) / workers


def memory_estimate(sweep: Sweep, trained: Training, tried: Rehearsal, workers: int) -> tuple[float, float]:
    """Bytes of this process during the search, and of all processes where it is most: in training or in the search."""
    more = _RUN_BYTES + (_MLFLOW_BYTES if sweep.tracking else 0.0)
    if sweep.executor_name not in ("local", "ray"):
        driver = own_memory().peak + more
        return driver, driver
    driver = psutil.Process().memory_info().rss + more
    handed = sum(array.nbytes for array in (trained.weights or {}).values())     # a copy that all workers read
    ray = _RAY_BYTES if sweep.executor_name == "ray" and sweep.ray_address is None else 0.0
    worker = max(0.0, tried.memory.peak - tried.memory.shared) if tried.memory else 0.0
    search = driver + handed + ray + workers * worker
    if trained.memory is None:
        return driver, search
    group = sweep.supernet_workers
    training = trained.memory.peak if group == 1 else driver + ray + group * (trained.memory.peak - trained.memory.shared)
    return driver, max(search, training)


def gpu_estimate(sweep: Sweep, trained: Training, tried: Rehearsal, workers: int) -> float | None:
    """Bytes of one GPU: every worker of this machine computes on it, on Ray as many as share it."""
    found = [memory.gpu for memory in (trained.memory, tried.memory) if memory is not None and memory.gpu is not None]
    if not found:
        return None
    if sweep.executor_name == "ray":
        workers = min(workers, max(1, int(1 / (getattr(sweep.executor, "gpus", 1) or 1))))
    evaluating = tried.memory.gpu if tried.memory is not None and tried.memory.gpu is not None else 0.0
    return max(found[0], workers * evaluating)


def warnings_of(sweep: Sweep, worker: float | None, total: float, gpu: float | None) -> list[str]:
    """Which limits are below the bytes of a worker, of all processes and of a GPU."""
    found = []
    if worker is not None and sweep.memory_gb is not None and worker > 1e9 * sweep.memory_gb:
        found.append(f"the largest candidate takes {worker / 1e9:.2f} GB of a worker, and memory_gb={sweep.memory_gb:g} "
                     "stops those that take more: they will fail")
    if sweep.ray_address is None and total > (here := machine_bytes()):
        found.append(f"{total / 1e9:.1f} GB are more than the {here / 1e9:.1f} GB of this machine; take fewer workers or a "
                     "smaller space")
    if gpu is not None and gpu > (there := gpu_bytes(sweep.device)):
        found.append(f"{gpu / 1e9:.1f} GB are more than the {there / 1e9:.1f} GB of {sweep.device}; take fewer workers or "
                     "smaller batches")
    return found
