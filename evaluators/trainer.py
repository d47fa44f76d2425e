"""The state of one training, and what a step does to it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BodyplanError
from .auxiliary import with_auxiliary
from .distributed import Group
from .optim import MaskedOptimizer, Touch, clip_gradients
from .pieces import Piece, Rows, cut, make_piece, num_targets, part_of, rows_of
from .precision import Precision
from .strategies import TrainingStrategy, Visit
from .tasks.base import Batch
from .weights import held_tensors, is_supernet, touch_masks

if TYPE_CHECKING:
    from ..space.architecture import Architecture
    from .tasks.base import Task

__all__ = ["Settings", "Trainer", "TrainingRecord", "distillation"]

MOST_SKIPPED = 20         # broken steps in a row after which training gives up


@dataclass
class TrainingRecord:
    """What a training did.

    `losses` are those of each step's first visit in nats: the task loss, or where the first visit is a student its
    divergence from the teacher. `skipped` counts steps that changed nothing because something was not finite.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0

    @property
    def steps(self) -> int:
        """Steps done, broken ones included."""
        return len(self.losses)


@dataclass(frozen=True)
class Settings:
    """How a training goes: what `train` was asked for, checked."""

    strategy: TrainingStrategy
    steps: int
    seed: int
    clip: float | None = 1.0
    accumulate: int = 1
    dtype: str | None = None
    auxiliary: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one module, or the subnets of a supernet, step by step. `train` makes it, feeds it and stores it."""

    def __init__(self, model: nn.Module, task: Task, settings: Settings, optimizer: MaskedOptimizer, group: Group):
        self.model, self.task, self.settings, self.optimizer, self.group = model, task, settings, optimizer, group
        self.strategy = settings.strategy
        self.is_supernet = is_supernet(model)
        self.space: Any = model.space if self.is_supernet else None
        self.held = held_tensors(model)
        self.statistics = {name: t for name, t in self.held.items() if name not in optimizer.parameters}
        self.device = next(iter(optimizer.parameters.values())).device
        self.precision = Precision(settings.dtype)
        self.source: Architecture | nn.Module | None = None         # what the fixed teacher was copied from
        self.frozen: nn.Module | None = None                        # that copy
        self.record = TrainingRecord()
        self.broken = 0
        self.is_consistent = True                       # False while weights and step number disagree
        for parameter in optimizer.parameters.values():
            parameter.grad = None                       # left by an interrupted step

    def begin(self) -> None:
        """What comes before the first step of a training that is not resumed."""
        self._rewrite(0)

    def step(self, step: int, lr: float) -> float:
        """One batch, all visits, one move. Returns the loss of the first visit."""
        batch = self.task.batch("train", step, self.settings.seed).to(self.device)
        self.model.train()
        before = {name: t.clone() for name, t in self.statistics.items()}
        visits = self._visits(step)
        with drawn_anew(self.settings.seed, step, self.device):
            used, losses = self._run(visits, batch, self._fixed_teacher(step))
        touched = self._touched(used)
        self.precision.unscale(self.optimizer.parameters.values())
        norm = clip_gradients(self.optimizer.parameters.values(), self.settings.clip)
        whole = math.isfinite(norm) and any(p.grad is not None for p in self.optimizer.parameters.values())
        self.is_consistent = False
        self.optimizer.step(lr, touched if whole else {})
        self._settle_statistics(before, whole)
        self._count(step, whole, losses[0])
        self.record.tokens += sum(num_targets(cut(batch, rows_of(visit, batch))) for visit in visits)
        self._rewrite(step + 1)
        self.is_consistent = True
        return losses[0]

    def _visits(self, step: int) -> list[Visit]:
        """The visits of a step, those of all ranks."""
        if not self.is_supernet:
            return [self.strategy.alone()]
        return list(self.strategy.visits(self.space, step, self.settings.steps, self.settings.seed))

    def _rewrite(self, step: int) -> None:
        if self.is_supernet:
            self.strategy.rewrite(self.model, step, self.settings.steps)                   # type: ignore[arg-type]

    def _run(self, visits: list[Visit], batch: Batch, fixed: nn.Module | None) -> tuple[list[nn.Module], list[float]]:
        """Make this rank's visits, and leave their part of the mean gradient on the weights.

        Returns the modules that gave a gradient, and the loss of every visit on all ranks.
        """
        losses = torch.zeros(len(visits), dtype=torch.float64)
        used: dict[int, nn.Module] = {}
        teachers = Teachers(self, visits, fixed)
        for pieces in self._pieces(visits, batch):
            teachers.forget()
            for piece in pieces:
                logits, extra = self._answer(piece)
                loss = self._loss(piece, logits, teachers) + piece.share * extra
                value = float(loss.detach())
                losses[piece.number] += value
                if math.isfinite(value):
                    (loss * self.precision.scale / len(visits)).backward()         # type: ignore[no-untyped-call]
                    used[piece.number] = piece.module
                if piece.visit.role == "teacher":
                    teachers.remember(piece.rows, logits.detach() if math.isfinite(value) else None)
        return list(used.values()), self.group.add(losses, self.device).tolist()

    def _pieces(self, visits: list[Visit], batch: Batch) -> Iterator[list[Piece]]:
        """The passes of this rank in order: a list per micro-batch, in it a piece per visit."""
        shares = self.group.deal(len(visits))
        modules = {number: self._module(visits[number], batch) for number in {share.visit for share in shares}}
        for turn in range(self.settings.accumulate):
            micro = turn, self.settings.accumulate
            made = (make_piece(visits[s.visit], s, micro, modules[s.visit], batch) for s in shares)
            yield [piece for piece in made if piece is not None]

    def _module(self, visit: Visit, batch: Batch) -> nn.Module:
        if visit.architecture is None:
            return self.model
        if not visit.rivals:
            return self._subnet(visit.architecture)
        modules = [self._subnet(rival) for rival in visit.rivals]
        losses = [self._task_loss(module, batch, rows_of(visit, batch)) for module in modules]
        sign = 1 if visit.pick == "best" else -1
        ranked = [sign * loss if math.isfinite(loss) else math.inf for loss in losses]
        return modules[ranked.index(min(ranked))]

    def _subnet(self, architecture: Architecture) -> nn.Module:
        made: nn.Module = self.model.subnet(architecture)                                  # type: ignore[operator]
        return made

    @torch.no_grad()
    def _task_loss(self, module: nn.Module, batch: Batch, rows: Rows) -> float:
        """The mean task loss over micro-batches, without gradient."""
        accumulate = self.settings.accumulate
        cuts = [cut(batch, part_of(rows, (turn, accumulate))) for turn in range(accumulate)]
        sums = [float(self.task.loss_of(self.forward(module, c), c)) * num_targets(c) for c in cuts if len(c.targets)]
        return sum(sums) / max(1, num_targets(cut(batch, rows)))

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        """The logits of a module on a batch in the precision of the training."""
        return self.precision.logits(module, batch.inputs)

    def _answer(self, piece: Piece) -> tuple[Tensor, Tensor | float]:
        """The logits of a piece that is trained, and what comes to its loss beside the task's."""
        if not self.settings.auxiliary:
            return self.forward(piece.module, piece.batch), 0.0
        with self.precision.forward(self.device):
            logits, extra = with_auxiliary(piece.module, self.task, piece.batch, self.settings.auxiliary)
        return self.precision.told(logits), extra.float()

    def _loss(self, piece: Piece, logits: Tensor, teachers: Teachers) -> Tensor:
        """The piece's part of the mean loss of its visit."""
        known = teachers.logits(piece) if piece.visit.role == "student" else None
        if known is None:
            return piece.target_share * self.task.loss_of(logits, piece.batch)
        loss = piece.share * distillation(logits, known)
        if piece.visit.hard:
            loss = loss + piece.visit.hard * piece.target_share * self.task.loss_of(logits, piece.batch)
        return loss

    def _fixed_teacher(self, step: int) -> nn.Module | None:
        """The fixed teacher of a step, copied when the strategy first names it."""
        source = self.strategy.fixed_teacher(self.space, step, self.settings.steps)
        if source is None:
            return None
        if self.frozen is None or self.source != source:
            given = getattr(source, "architecture", None)           # not copied along: it holds its whole space
            made = (copy.deepcopy(source, {id(given): given}) if isinstance(source, nn.Module)
                    else self.model.extract(source))                                       # type: ignore[operator]
            self.source, self.frozen = source, made.to(self.device).requires_grad_(False).eval()
        return self.frozen

    def _touched(self, used: list[nn.Module]) -> dict[str, Touch] | None:
        """What the step touched on any rank; the gradients of all ranks are summed."""
        parameters = self.optimizer.parameters
        return self.group.unite(parameters, touch_masks(used, parameters) if self.is_supernet else None)

    @torch.no_grad()
    def _settle_statistics(self, before: Mapping[str, Tensor], whole: bool) -> None:
        """Running statistics after a step: as before if it was broken, else with the changes of all ranks added."""
        for name, tensor in self.statistics.items():
            if not whole:
                tensor.copy_(before[name])
            elif self.group.size > 1:
                tensor.copy_(before[name] + self.group.add(tensor - before[name], self.device))

    def _count(self, step: int, whole: bool, loss: float) -> None:
        self.record.losses.append(loss)
        is_overflow = self.precision.update(whole)
        self.broken = 0 if whole else self.broken + (not is_overflow)
        self.record.skipped += not whole
        if self.broken >= MOST_SKIPPED:
            raise BodyplanError(f"training diverged: {MOST_SKIPPED} steps in a row without a finite loss and gradient, "
                                f"up to step {step + 1} (loss {loss}); lower lr")


@contextmanager
def drawn_anew(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """What layers draw in training is a function of (seed, step), and takes nothing from the numbers of others."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        drawn = int.from_bytes(hashlib.sha256(f"noise {seed} {step}".encode()).digest()[:7], "big")
        torch.default_generator.manual_seed(drawn)          # torch.manual_seed would also set the other devices, for good
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(drawn)
        yield


class Teachers:
    """The logits that the students of a step learn from, computed once per micro-batch."""

    def __init__(self, trainer: Trainer, visits: list[Visit], fixed: nn.Module | None):
        self.trainer, self.fixed = trainer, fixed
        self.own = next((visit.architecture for visit in visits if visit.role == "teacher"), None)
        self.known: dict[Rows, Tensor | None] = {}

    def forget(self) -> None:
        """A new micro-batch."""
        self.known = {}

    def remember(self, rows: Rows, logits: Tensor | None) -> None:
        """What the step's teacher answered on these examples; None where its loss was not finite."""
        self.known[rows] = logits

    def logits(self, piece: Piece) -> Tensor | None:
        """The teacher's logits on the examples of a piece; None where there is no teacher to learn from."""
        if piece.rows not in self.known:
            self.known[piece.rows] = self._computed(piece.batch)
        return self.known[piece.rows]

    @torch.no_grad()
    def _computed(self, batch: Batch) -> Tensor | None:
        """Ask the step's own teacher, which another rank trains, or the fixed one."""
        trainer = self.trainer
        if self.own is None:
            return None if self.fixed is None else trainer.forward(self.fixed, batch)
        logits = trainer.forward(trainer._subnet(self.own), batch)
        return logits if math.isfinite(float(trainer.task.loss_of(logits, batch))) else None


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence in nats, over predictions, of the student from the teacher."""
    classes = student.shape[-1]
    ours, theirs = (logits.reshape(-1, classes).float().log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
