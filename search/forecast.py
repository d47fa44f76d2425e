"""What a sweep would take, from timing the first of its work."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import psutil

from .definition import space_size
from .executors.base import Job, Outcome, attempt, available_cpus
from .placement import supernet_threads
from .progress import duration
from .seeds import evaluation_seed

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["Forecast", "forecast"]

_SAMPLES = 10
_TRAINING_STEPS = 2
_RAY_SECONDS = 10.0         # to start a Ray and the workers that train a supernet together


@dataclass(frozen=True)
class Forecast:
    """An estimate, made on this machine by timing two evaluations and, where weights are trained, two steps.

    `seconds` covers supernet training, search, twin and retraining, None where only `hours` bounds the search.
    `seconds_per_step` is of one process that makes all visits of a step, `seconds` counts how they are dealt over
    `supernet_workers`.
    `memory_gb` (10^9 bytes) is this process and one like it per worker. `failures` are the reasons of timed evaluations
    that failed.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        size = "not countable (it has continuous or many constrained decisions)"
        if self.space_size is not None:
            size = f"{int(self.space_size):,}" if len(self.space_size) < 16 else f"{float(self.space_size):.2e}"
            size += " genomes"
        lines = [f"space: {size}, {self.num_genes} decisions", "ten samples:", *(f"  {s}" for s in self.samples),
                 f"one evaluation: {duration(self.seconds_per_trial)}, {self.workers} at a time"]
        if self.seconds_per_step is not None:
            shared = f", its work dealt over {self.supernet_workers} workers" if self.supernet_workers > 1 else ""
            lines.append(f"one training step of the supernet: {duration(self.seconds_per_step)}{shared}")
        lines += [f"an evaluation failed: {reason}" for reason in self.failures]
        total = "as long as `hours` says" if self.seconds is None else f"about {duration(self.seconds)}"
        return "\n".join([*lines, f"in all: {total}, {self.memory_gb:.1f} GB of memory; nothing was written"])


def forecast(sweep: Sweep) -> Forecast:
    """Time the smallest and the largest candidate and, for a supernet, two steps; nothing is written."""
    space = sweep.space
    genomes = [space.sample_genome(Random(f"{sweep.seed} sample {i}")) for i in range(_SAMPLES)]
    weights, per_step = _supernet(sweep)
    outcomes = _evaluate(sweep, weights)
    per_trial = sum(outcome.seconds for outcome in outcomes) / len(outcomes)
    workers = 1 if sweep.executor == "inline" else sweep.workers or available_cpus()
    reasons = tuple(outcome.failure.reason for outcome in outcomes if outcome.failure)
    return Forecast(space_size(space), len(space.genes), tuple(_line(sweep, genome) for genome in genomes), per_trial,
                    per_step, _total(sweep, per_trial, per_step, workers), _memory_gb(workers, sweep), workers,
                    sweep.supernet_workers, reasons)


def _evaluate(sweep: Sweep, weights: Any) -> list[Outcome]:
    evaluator = sweep.evaluator(weights)
    evaluator.setup()
    genomes = [sweep.space.smallest(), sweep.space.largest()]
    jobs = [Job(i, "score", genome, evaluation_seed(sweep.seed, genome, sweep.fidelity), sweep.fidelity)
            for i, genome in enumerate(genomes)]
    return [attempt(evaluator, job, "dry run") for job in jobs]


def _supernet(sweep: Sweep) -> tuple[Any, float | None]:
    """Weights barely trained, and the seconds of a step."""
    if not sweep.supernet:
        return None, None
    from ..evaluators.training import step_seconds
    from ..space.elastic.supernet import Supernet

    assert sweep.task is not None
    net = Supernet(sweep.space, seed=sweep.seed)
    seconds = step_seconds(net, sweep.task, _TRAINING_STEPS, strategy=sweep.supernet_strategy, seed=sweep.seed,
                           device=sweep.device, dtype=sweep.dtype, auxiliary=sweep.auxiliary,
                           threads=supernet_threads(sweep))
    return net.state_numpy(), seconds


def _share(sweep: Sweep) -> float:
    """The part of a step's work that falls to each of the workers that train the supernet."""
    from ..evaluators.distributed import Group
    from ..evaluators.strategies import resolve

    visits = len(list(resolve(sweep.supernet_strategy).visits(sweep.space, 0, sweep.supernet_steps, sweep.seed)))
    return sum(1 / share.parts for share in Group(0, sweep.supernet_workers).deal(visits)) / visits


def _total(sweep: Sweep, per_trial: float, per_step: float | None, workers: int) -> float | None:
    if sweep.trials is None:
        return None
    seconds = sweep.trials * (2 if sweep.twin else 1) * per_trial / workers
    if per_step is not None:
        # a sandwich step visits three subnets of about a third of the largest's cost; one alone costs about a third
        alone = (sweep.retrain + sweep.fidelity_sample) * sweep.steps * per_step / 3 / workers
        seconds += sweep.supernet_steps * per_step * _share(sweep) + alone
        seconds += _RAY_SECONDS * (sweep.supernet_workers > 1)
    if sweep.hours is not None:
        seconds = min(seconds, sweep.hours * 3600)
    return seconds


def _memory_gb(workers: int, sweep: Sweep) -> float:
    resident: int = psutil.Process(os.getpid()).memory_info().rss
    return resident * (1 if sweep.executor == "inline" else 1 + max(workers, sweep.supernet_workers)) / 1e9


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
