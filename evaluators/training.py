"""Training, of shared weights or of one module: the same loop, resumable to the bit.

A step takes one batch, visits the subnets its strategy names (one, for a plain module), adds their gradients, clips
them and moves what was touched. Batches, visits and what layers draw are pure functions of (step, seed), so the state of
a training is its weights, its moments and its step number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .auxiliary import applying, check_auxiliary
from .checkpoint import restore, saved
from .devices import check_device, keep_freed_memory, on_threads
from .distributed import Group
from .optim import make_optimizer
from .precision import check_dtype
from .strategies import TrainingStrategy, resolve
from .trainer import Settings, Trainer, TrainingRecord
from .weights import held_tensors, is_supernet

if TYPE_CHECKING:
    from .tasks.base import Task

__all__ = ["TrainingRecord", "held_auxiliary", "learning_rate", "step_seconds", "train"]

CHECKPOINT_SECONDS = 60.0
WARMING_STEPS = 2           # before timed ones: the first take fresh memory, and in a new process load what is lazy


def train(model: nn.Module, task: Task, steps: int, strategy: str | TrainingStrategy = "sandwich", lr: float = 3e-3,
          seed: int = 0, checkpoint: str | os.PathLike[str] | None = None, resume: bool = False,
          progress: Callable[[int, int, float], None] | None = None, threads: int | None = None,
          warmup: float = 0.05, weight_decay: float = 0.1, checkpoint_seconds: float = CHECKPOINT_SECONDS, *,
          accumulate: int = 1, dtype: str | None = None, clip: float | None = 1.0, optimizer: str = "adamw",
          rates: Mapping[str, float] | None = None, device: str | None = None,
          group: Group | None = None, auxiliary: Mapping[str, float] | None = None) -> TrainingRecord:
    """Train a `Supernet` by sampling its subnets, or any plain module on the task alone, in place.

    The optimizer moves what each step touched, with linear warm-up over the first `warmup` of the steps, then a
    cosine to a tenth of `lr`. A visit whose loss or a step whose gradient is not finite changes nothing; 20 such
    steps in a row end the training.

    Args:
        strategy: which subnets a step visits: a name ("sandwich", "single_path", "fair", ...) or an object with
            settings (`Sandwich(random=2)`). A plain module has no subnets; it takes a given fixed teacher from it
            and ignores the rest.
        lr: peak learning rate.
        checkpoint: a file to keep the training's state in, rewritten every `checkpoint_seconds`, at the end and
            when the training is interrupted between two moves of the weights. With a group, the first rank's.
        resume: continue from `checkpoint` if it exists; the result equals an uninterrupted training to the bit, on
            the same machine and threads.
        progress: called after every step as `progress(done, steps, loss)`; what it raises ends the training.
        threads: torch threads for the time of the training; default: as they are.
        accumulate: micro-batches per step, each of them an equal part of the batch; the step is that of the whole
            batch to rounding, at a fraction of its memory. Operators with batch statistics see micro-batches.
        dtype: "bfloat16" or "float16" for mixed precision: autocast, with a loss scale for float16. Weights and
            optimizer keep their type, in which "float32" or None computes.
        clip: largest common norm of all gradients; None leaves them.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        rates: multipliers of the learning rate by parameter name (by address in a supernet); they do not
            multiply the decay.
        device: where to train, such as "cuda"; the model is moved there and stays. Default: where it is.
        auxiliary: losses that layers of the model have beside the task's, by name, each with its weight in the sum:
            "ratio" (`DynamicChunks`, see `ratio_loss`), "routing" (`Routed`, `routing_loss`), "gate" (`GatedDepth`,
            `mean_gate`), "rate" (`MultiRate`, `rate_loss`); of `EarlyExit` and `MultiRate` "exits", the task's mean loss at
            the exits before the end, "exit_distillation" and "halting" (`halting_loss`). Subnets without such layers
            have none of it.
        group: the processes that train together, each calling this with the same arguments; see `distributed`.

    Raises:
        ValueError: bad numbers, an unknown strategy, optimizer, type, device or parameter name, an auxiliary loss that
            is not there or about nothing in the model, or a checkpoint that is in the way or of another training.
        BodyplanError: the training diverged, or the checkpoint cannot be read.
    """
    _check(steps, lr, warmup, accumulate, clip)
    dtype = check_dtype(dtype)
    extra = check_auxiliary(model, auxiliary)
    keep_freed_memory()
    if device is not None:
        model.to(check_device(device))
    group = group or Group()
    chosen = resolve(strategy)
    moved = make_optimizer(optimizer, _trained(model), weight_decay, rates)
    trainer = Trainer(model, task, Settings(chosen, steps, seed, clip, accumulate, dtype, extra), moved, group)
    path = None if checkpoint is None else Path(checkpoint)
    asked = {"steps": steps, "strategy": _label(model, chosen), "lr": lr, "seed": seed, "warmup": warmup,
             "weight_decay": weight_decay, "task": task.fingerprint if path else "",
             **_unusual(accumulate=(accumulate, 1), dtype=(dtype, None), clip=(clip, 1.0), rates=(_digest(rates), ""),
                        optimizer=(optimizer, "adamw"), workers=(group.size, 1), auxiliary=(extra, {}))}
    if not restore(trainer, path, asked, resume):
        trainer.begin()
    with on_threads(threads), saved(trainer, path, asked) as save:
        last = time.monotonic()
        for step in range(trainer.record.steps, steps):
            started = time.perf_counter()
            loss = trainer.step(step, learning_rate(step, steps, lr, warmup))
            trainer.record.seconds += time.perf_counter() - started
            if time.monotonic() - last >= checkpoint_seconds:
                save()
                last = time.monotonic()
            if progress is not None and group.rank == 0:
                progress(step + 1, steps, loss)
    return trainer.record


def step_seconds(model: nn.Module, task: Task, steps: int, clock: Callable[[], float] = time.perf_counter,
                 **options: Any) -> float:
    """Seconds of one training step: the mean over `steps` that follow two which warm up.

    The clock runs from the end of one step to the end of another, so that what a training costs once, at its beginning
    and its end, does not count. The model is trained by it.

    Args:
        clock: `time.process_time` leaves out what other processes took, and is right where one thread works.
        options: what `train` takes besides.
    """
    ends: list[float] = []
    train(model, task, WARMING_STEPS + steps, progress=lambda done, of, loss: ends.append(clock()), **options)
    return (ends[-1] - ends[WARMING_STEPS - 1]) / steps


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """The rate of step number `step`, from 0: a line up to `peak`, then a cosine down to a tenth of it."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def _trained(model: nn.Module) -> dict[str, Any]:
    trained = {name: tensor for name, tensor in held_tensors(model).items() if tensor.requires_grad}
    if not trained:
        raise ValueError(f"training needs parameters that require gradients: {type(model).__name__} has none")
    return trained


def held_auxiliary(model: nn.Module, auxiliary: Mapping[str, float]) -> dict[str, float]:
    """Those of the auxiliary losses that a model has layers for."""
    return applying(model.modules(), auxiliary) if auxiliary else {}


def _label(model: nn.Module, strategy: TrainingStrategy) -> str:
    """What a checkpoint calls the way of training; a plain module takes of a strategy its given teacher alone."""
    is_plain = not is_supernet(model) and strategy.fixed_teacher(None, 0, 1) is None
    return "plain" if is_plain else strategy.label


def _unusual(**settings: tuple[Any, Any]) -> dict[str, Any]:
    """Settings that are not at their defaults, so that checkpoints from before a setting existed still fit."""
    return {name: value for name, (value, default) in settings.items() if value != default}


def _digest(rates: Mapping[str, float] | None) -> str:
    """A fingerprint of the multipliers; empty without any."""
    return hashlib.sha256(json.dumps(rates, sort_keys=True).encode()).hexdigest()[:16] if rates else ""


def _check(steps: int, lr: float, warmup: float, accumulate: int, clip: float | None) -> None:
    for name, count in (("steps", steps), ("accumulate", accumulate)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1: got {count!r}")
    if not lr > 0 or not math.isfinite(lr):
        raise ValueError(f"lr must be a positive number: got {lr!r}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps, from 0 to below 1: got {warmup!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be a positive number, or None: got {clip!r}")
