"""What a sweep would take, from doing the first of its work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from .definition import space_size
from .estimating import Training, gpu_estimate, memory_estimate, seconds_estimate, warnings_of, workers_of
from .placement import supernet_threads
from .progress import duration
from .rehearsal import gpu_peak, own_memory, rehearse

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Forecast", "forecast"]

_SAMPLES = 10
_TRAINING_STEPS = 2


@dataclass(frozen=True)
class Forecast:
    """An estimate, made on this machine from two or three evaluations and, where weights are trained, four steps.

    `seconds` covers supernet training, probes, search, twin, retraining and the front's scores on the test split, None
    where only `hours` bounds the search; `hours` bounds what comes before its end, and what follows is on top.
    `seconds_per_trial` is of one evaluation alone. `seconds_alone` of it are measured with the machine to itself (objectives
    with a `device`): such parts take turns however many workers there are, and another's scoring waits meanwhile.
    On a cluster they take turns per machine, which is not counted; nor is what a predictor saves of them.
    `seconds_per_step` is of one process that makes all visits of a step, `seconds` counts how they are dealt over
    `supernet_workers`.

    In 10^9 bytes: `worker_gb` the most that was resident in a process that evaluated the largest candidate, this one where
    evaluations are made inline; `driver_gb` what this process holds during the search; `memory_gb` all processes together
    in the larger of training and search, what they share once. `gpu_gb` what torch takes of one GPU, besides the contexts
    of its processes, None where the sweep computes on a CPU. `warnings` say which limits that exceeds, `failures` are the
    reasons of evaluations that failed.
    """

    space_size: str | None
    num_genes: int
    samples: tuple[str, ...]
    seconds_per_trial: float
    seconds_per_step: float | None
    seconds: float | None
    memory_gb: float
    workers: int
    supernet_workers: int = 1
    failures: tuple[str, ...] = ()
    seconds_alone: float = 0.0
    worker_gb: float | None = None
    driver_gb: float = 0.0
    gpu_gb: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        size = "not countable (it has continuous or many constrained decisions)"
        if self.space_size is not None:
            size = f"{int(self.space_size):,}" if len(self.space_size) < 16 else f"{float(self.space_size):.2e}"
            size += " genomes"
        turns = f", {duration(self.seconds_alone)} of it alone on the machine" if self.seconds_alone else ""
        lines = [f"space: {size}, {self.num_genes} decisions", "ten samples:", *(f"  {s}" for s in self.samples),
                 f"one evaluation: {duration(self.seconds_per_trial)}{turns}, {self.workers} at a time"]
        if self.seconds_per_step is not None:
            shared = f", its work dealt over {self.supernet_workers} workers" if self.supernet_workers > 1 else ""
            lines.append(f"one training step of the supernet: {duration(self.seconds_per_step)}{shared}")
        if self.worker_gb is not None:
            lines.append(f"memory: {self.driver_gb:.2f} GB here, {self.worker_gb:.2f} GB at most in a process that evaluates")
        if self.gpu_gb is not None:
            lines.append(f"GPU memory: {self.gpu_gb:.2f} GB")
        lines += [f"an evaluation failed: {reason}" for reason in self.failures]
        lines += [f"warning: {warning}" for warning in self.warnings]
        total = "as long as `hours` says" if self.seconds is None else f"about {duration(self.seconds)}"
        return "\n".join([*lines, f"in all: {total}, {self.memory_gb:.1f} GB of memory; nothing was written"])


def forecast(sweep: Sweep) -> Forecast:
    """Evaluate the smallest and the largest candidate and, for a supernet, train a few steps; nothing is written."""
    space = sweep.space
    genomes = [space.sample_genome(Random(f"{sweep.seed} sample {i}")) for i in range(_SAMPLES)]
    trained = _supernet(sweep)
    tried = rehearse(sweep, trained.weights)
    workers = workers_of(sweep)
    driver, total = memory_estimate(sweep, trained, tried, workers)
    gpu = gpu_estimate(sweep, trained, tried, workers)
    worker = None if tried.memory is None else tried.memory.peak
    return Forecast(
        space_size(space), len(space.genes), tuple(_line(sweep, genome) for genome in genomes), tried.seconds, trained.step,
        seconds_estimate(sweep, tried, trained.step, workers), total / 1e9, workers, sweep.supernet_workers, tried.failures,
        tried.alone, _gigabytes(worker), driver / 1e9, _gigabytes(gpu), tuple(warnings_of(sweep, worker, total, gpu)))


def _gigabytes(number: float | None) -> float | None:
    return None if number is None else number / 1e9


def _supernet(sweep: Sweep) -> Training:
    """Weights barely trained; they lie where the sweep has them while it searches."""
    if not sweep.supernet:
        return Training()
    from ..evaluators.devices import release
    from ..evaluators.training import step_seconds
    from ..space.elastic.supernet import Supernet

    assert sweep.task is not None
    net = Supernet(sweep.space, seed=sweep.seed)
    seconds = step_seconds(net, sweep.task, _TRAINING_STEPS, strategy=sweep.supernet_strategy, seed=sweep.seed,
                           device=sweep.device, dtype=sweep.dtype, auxiliary=sweep.auxiliary,
                           threads=supernet_threads(sweep))
    memory = replace(own_memory(), gpu=gpu_peak(sweep.device))
    weights = net.state_numpy()
    release(net)
    return Training(weights, seconds, memory)


def _line(sweep: Sweep, genome: Any) -> str:
    architecture = sweep.space.architecture(genome)
    cost = architecture.cost()
    layers = " ".join(_block(block) for block in architecture.plan.layers)
    return f"{architecture.short}  {cost.parameters:>12,} parameters  width {architecture.plan.width}: {layers}"


def _block(block: Any) -> str:
    """A block by its operators; a macro by its own name."""
    if not hasattr(block, "sublayers"):
        return type(block).__name__
    return "+".join(type(op).__name__ for _, op in block.sublayers())
