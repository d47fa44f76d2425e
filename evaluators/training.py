"""Training, of shared weights or of one module: the same loop, resumable to the bit.

A step takes one batch, visits the subnets its strategy names (one, for a plain module), adds their gradients,
clips them and moves what was touched. Batches and visits are pure functions of (step, seed) and nothing else
is random, so the state of a training is its weights, its moments and its step number.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BodyplanError
from .checkpoint import read_checkpoint, write_checkpoint
from .devices import keep_freed_memory, on_threads
from .optim import MaskedAdamW, Touch, clip_gradients
from .sampling import Visit, sampling_strategies
from .tasks.base import Batch

if TYPE_CHECKING:
    from .tasks.base import Task

__all__ = ["TrainingRecord", "learning_rate", "train"]

CLIP = 1.0
MOST_SKIPPED = 20         # broken steps in a row after which training gives up
CHECKPOINT_SECONDS = 60.0


@dataclass
class TrainingRecord:
    """What a training did. `losses` are the task losses in nats of each step's first visit."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0

    @property
    def steps(self) -> int:
        """Steps done, broken ones included."""
        return len(self.losses)


def train(model: nn.Module, task: Task, steps: int, strategy: str = "sandwich", lr: float = 3e-3,
          seed: int = 0, checkpoint: str | os.PathLike[str] | None = None, resume: bool = False,
          progress: Callable[[int, int, float], None] | None = None, threads: int | None = None,
          warmup: float = 0.05, weight_decay: float = 0.1,
          checkpoint_seconds: float = CHECKPOINT_SECONDS) -> TrainingRecord:
    """Train a `Supernet` by sampling its subnets, or any plain module on the task alone, in place.

    AdamW on what each step touched, linear warm-up over the first `warmup` of the steps, then a cosine to a
    tenth of `lr`; gradients clipped to a norm of 1. A visit whose loss or a step whose gradient is not finite
    changes nothing; 20 such steps in a row end the training.

    Args:
        strategy: which subnets a step visits: "sandwich", "single_path", "fair" or a registered name. A plain
            module has no subnets and ignores it.
        checkpoint: a file to keep the training's state in, rewritten every `checkpoint_seconds`, at the end
            and when the training is interrupted between two moves of the weights.
        resume: continue from `checkpoint` if it exists; the result equals an uninterrupted training to the
            bit, on the same machine and threads.
        progress: called after every step as `progress(done, steps, loss)`; what it raises ends the training.
        threads: torch threads for the time of the training; default: as they are.

    Raises:
        ValueError: bad numbers, an unknown strategy, or a checkpoint that is in the way or of another
            training.
        BodyplanError: the training diverged, or the checkpoint cannot be read.
    """
    _check(steps, lr, warmup)
    keep_freed_memory()
    run = _Run(model, task, strategy, seed, weight_decay)
    path = None if checkpoint is None else Path(checkpoint)
    settings = {"steps": steps, "strategy": run.strategy, "lr": lr, "seed": seed, "warmup": warmup,
                "weight_decay": weight_decay, "task": task.fingerprint if path else ""}
    if path is not None and path.exists():
        _continue(run, path, settings, resume)
    with on_threads(threads), _saved(run, path, settings) as save:
        last = time.monotonic()
        for step in range(run.record.steps, steps):
            started = time.perf_counter()
            loss = run.step(step, learning_rate(step, steps, lr, warmup))
            run.record.seconds += time.perf_counter() - started
            if path is not None and time.monotonic() - last >= checkpoint_seconds:
                save()
                last = time.monotonic()
            if progress is not None:
                progress(step + 1, steps, loss)
    return run.record


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """The rate of step number `step`, from 0: a line up to `peak`, then a cosine down to a tenth of it."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


class _Run:
    """The state of one training and what a step does to it."""

    def __init__(self, model: nn.Module, task: Task, strategy: str, seed: int, weight_decay: float):
        self.model, self.task, self.seed = model, task, seed
        self.shared = hasattr(model, "subnet")
        self.strategy = strategy if self.shared else "plain"
        self.visits = sampling_strategies.get(strategy) if self.shared else None
        self.space: Any = getattr(model, "space", None)
        named = dict(model.tensors) if self.shared else dict(model.named_parameters())    # type: ignore[arg-type]
        trained = {name: p for name, p in named.items() if p.requires_grad}
        if not trained:
            raise ValueError(f"training needs parameters that require gradients: {type(model).__name__} has "
                             "none")
        self.optimizer = MaskedAdamW(trained, weight_decay=weight_decay)
        self.device = next(iter(trained.values())).device
        self.record = TrainingRecord()
        self.broken = 0
        self.is_consistent = True                       # False while weights and step number disagree
        for parameter in trained.values():
            parameter.grad = None                       # left by an interrupted step

    def step(self, step: int, lr: float) -> float:
        """One batch, all visits, one move. Returns the task loss of the first visit."""
        batch = self.task.batch("train", step, self.seed).to(self.device)
        self.model.train()
        visited, first, num_visits = self._visit(step, batch)
        touched = self._touched(visited)
        norm = clip_gradients(self.optimizer.parameters.values(), CLIP)
        whole = bool(visited) and math.isfinite(norm)
        self.is_consistent = False
        self.optimizer.step(lr, touched if whole else {})
        self._count(step, whole, first)
        self.record.tokens += batch.targets.numel() * num_visits
        self.is_consistent = True
        return first

    def _visit(self, step: int, batch: Batch) -> tuple[list[nn.Module], float, int]:
        """Run the visits of a step and leave the mean of their gradients on the weights.

        Returns the modules that gave a gradient, the loss of the first visit, and how many visits there were.
        """
        visits = [None] if self.visits is None else list(self.visits(self.space, step, self.seed))
        teacher: Tensor | None = None
        kept, first = [], math.nan
        for number, visit in enumerate(visits):
            module = self.model if visit is None else self.model.subnet(visit.architecture)   # type: ignore[operator]
            logits = module(batch.inputs)
            loss = self._loss(visit, logits, batch, teacher)
            value = float(loss.detach())
            first = value if number == 0 else first
            if math.isfinite(value):
                (loss / len(visits)).backward()                            # type: ignore[no-untyped-call]
                kept.append(module)
                teacher = logits.detach() if visit is not None and visit.role == "teacher" else teacher
        return kept, first, len(visits)

    def _loss(self, visit: Visit | None, logits: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        if visit is None or visit.role != "student" or teacher is None:
            return self.task.loss_of(logits, batch)
        return distillation(logits, teacher)

    def _touched(self, visited: list[nn.Module]) -> dict[str, Touch] | None:
        return touch_masks(visited, self.optimizer.parameters) if self.shared else None

    def _count(self, step: int, whole: bool, loss: float) -> None:
        self.record.losses.append(loss)
        self.broken = 0 if whole else self.broken + 1
        self.record.skipped += not whole
        if self.broken >= MOST_SKIPPED:
            raise BodyplanError(f"training diverged: {MOST_SKIPPED} steps in a row without a finite loss and "
                                f"gradient, up to step {step + 1} (loss {loss}); lower lr")


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence in nats, over predictions, of the student from the teacher."""
    classes = student.shape[-1]
    ours, theirs = (logits.reshape(-1, classes).float().log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def touch_masks(subnets: Iterable[nn.Module], parameters: dict[str, Tensor]) -> dict[str, Touch]:
    """The union of what `subnets` use, as one mask per shared tensor; None where that is all of it."""
    masks: dict[str, Touch] = {}
    for subnet in subnets:
        for address, index in subnet.touched().items():                                   # type: ignore[operator]
            whole = parameters[address]
            if index.numel() == whole.numel():
                masks[address] = None
            elif masks.get(address, False) is not None:
                mask = masks.setdefault(address, torch.zeros_like(whole, dtype=torch.bool))
                assert mask is not None
                mask.view(-1)[index.to(whole.device)] = True
    return {a: None if m is None or bool(m.all()) else m for a, m in masks.items()}


def _check(steps: int, lr: float, warmup: float) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1: got {steps!r}")
    if not lr > 0 or not math.isfinite(lr):
        raise ValueError(f"lr must be a positive number: got {lr!r}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps, from 0 to below 1: got {warmup!r}")


def _continue(run: _Run, path: Path, settings: dict[str, Any], resume: bool) -> None:
    """Put a training into the state of its checkpoint."""
    tensors, state = read_checkpoint(path)
    if not resume:
        raise ValueError(f"nothing is overwritten: {path} holds a training at step "
                         f"{len(state['record']['losses'])}; give resume=True to continue it, or another "
                         "file")
    then = state["settings"]
    odd = [f"{k} {then.get(k)!r}, now {v!r}" for k, v in settings.items() if then.get(k) != v]
    if odd:
        raise ValueError(f"a training is resumed with the settings it was started with: {path} has "
                         f"{'; '.join(odd)}")
    weights = {k.removeprefix("weight:"): t for k, t in tensors.items() if k.startswith("weight:")}
    if weights.keys() != run.optimizer.parameters.keys():
        name = sorted(weights.keys() ^ run.optimizer.parameters.keys())[0]
        raise ValueError(f"a checkpoint holds the weights of the model it resumes: {name!r} stands in one "
                         f"only at {path}")
    with torch.no_grad():
        for name, tensor in weights.items():
            run.optimizer.parameters[name].copy_(tensor)
    run.optimizer.load(tensors, state["counts"])
    run.record = TrainingRecord(**{**state["record"], "losses": _from_json(state["record"]["losses"])})
    run.broken = state["broken"]


def _save(run: _Run, path: Path, settings: dict[str, Any]) -> None:
    tensors = {f"weight:{name}": p for name, p in run.optimizer.parameters.items()} | run.optimizer.tensors()
    record = {**vars(run.record), "losses": _to_json(run.record.losses)}
    write_checkpoint(path, tensors, {"settings": settings, "record": record, "broken": run.broken,
                                     "counts": run.optimizer.counts()})


def _to_json(losses: list[float]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def _from_json(losses: list[float | None]) -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]


@contextlib.contextmanager
def _saved(run: _Run, path: Path | None, settings: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Gives the function that writes the checkpoint; writes it at the end and when interrupted."""
    def save() -> None:
        if path is not None and run.is_consistent:
            _save(run, path, settings)
    try:
        yield save
    except BodyplanError:
        raise                                           # a diverged training is not worth continuing
    except BaseException:
        save()
        raise
    save()
