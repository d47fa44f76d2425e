"""Training state on disk: one safetensors file, its JSON in the header, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import BodyplanError

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["SCHEMA_VERSION", "read_checkpoint", "restore", "saved", "write_checkpoint"]

SCHEMA_VERSION = 1


def restore(trainer: Trainer, path: Path | None, settings: Mapping[str, Any], resume: bool) -> bool:
    """Put a training into the state of its checkpoint, if there is one; returns whether there was.

    All ranks take the first one's checkpoint, or its weights.

    Raises:
        ValueError: the checkpoint is in the way, or of another training.
        BodyplanError: it cannot be read.
    """
    found, problem = None, None
    if path is not None and trainer.group.rank == 0 and path.exists():
        try:
            found = _fitting(trainer, path, settings, resume)
        except (ValueError, BodyplanError) as error:
            problem = error
    found, problem = trainer.group.spread((found, problem))
    if problem is not None:
        raise problem
    if found is None:
        _spread_weights(trainer)
        return False
    _load(trainer, *found)
    return True


@contextlib.contextmanager
def saved(trainer: Trainer, path: Path | None, settings: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Gives the function that writes the checkpoint; writes it at the end and when interrupted."""
    def save() -> None:
        if path is not None and trainer.is_consistent and trainer.group.rank == 0:
            _save(trainer, path, settings)
    try:
        yield save
    except BodyplanError:
        raise                                           # a diverged training is not worth continuing
    except BaseException:
        save()
        raise
    save()


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`. A reader sees the old one or the new one, also after a power cut."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    header = {"format": "pt", "state": json.dumps({"schema_version": SCHEMA_VERSION, **state})}
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(partial),
                  metadata=header)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        BodyplanError: the file is not a checkpoint of this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as stored:
            state = json.loads((stored.metadata() or {}).get("state", "{}"))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}      # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as broken:
        raise BodyplanError(f"a checkpoint must be readable: {path} is not ({broken}); remove it to "
                            "start again") from broken
    if state.get("schema_version") != SCHEMA_VERSION:
        raise BodyplanError(f"a checkpoint of schema_version {SCHEMA_VERSION} is needed: {path} has "
                            f"{state.get('schema_version')!r}; remove it to start again")
    return tensors, state


def _fitting(trainer: Trainer, path: Path, settings: Mapping[str, Any],
             resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the checkpoint of this very training."""
    tensors, state = read_checkpoint(path)
    if not resume:
        raise ValueError(f"nothing is overwritten: {path} holds a training at step "
                         f"{len(state['record']['losses'])}; give resume=True to continue it, or another file")
    then = state["settings"]
    names = [name for name in {**settings, **then} if then.get(name) != settings.get(name)]
    odd = [f"{name} {then.get(name)!r}, now {settings.get(name)!r}" for name in names]
    if odd:
        raise ValueError(f"a training is resumed with the settings it was started with: {path} has {'; '.join(odd)}")
    differing = {key.removeprefix("weight:") for key in tensors if key.startswith("weight:")} ^ trainer.held.keys()
    if differing:
        raise ValueError(f"a checkpoint holds the weights of the model it resumes: {sorted(differing)[0]!r} stands in "
                         f"one only at {path}")
    return tensors, state


@torch.no_grad()
def _load(trainer: Trainer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    from .trainer import TrainingRecord

    for name, tensor in trainer.held.items():
        tensor.copy_(tensors[f"weight:{name}"])
    trainer.optimizer.load(tensors, state["counts"])
    trainer.record = TrainingRecord(**{**state["record"], "losses": _from_json(state["record"]["losses"])})
    trainer.broken = state["broken"]
    if "precision" in state:
        trainer.precision.load(state["precision"])
    if "teacher" in state:
        _load_teacher(trainer, tensors, state["teacher"])


def _load_teacher(trainer: Trainer, tensors: Mapping[str, Tensor], genome: Mapping[str, Any]) -> None:
    """The copy of a subnet that students learn from, as it was taken then."""
    from ..space.genome import Genome

    trainer.source = trainer.space.architecture(Genome.from_json(genome))
    copy = trainer.model.extract(trainer.source).requires_grad_(False).eval()               # type: ignore[operator]
    for name, tensor in copy.named_parameters():
        tensor.copy_(tensors[f"teacher:{name}"])
    trainer.frozen = copy


def _save(trainer: Trainer, path: Path, settings: Mapping[str, Any]) -> None:
    tensors = {f"weight:{name}": tensor for name, tensor in trainer.held.items()} | trainer.optimizer.tensors()
    state: dict[str, Any] = {
        "settings": dict(settings), "broken": trainer.broken, "counts": trainer.optimizer.counts(),
        "record": {**vars(trainer.record), "losses": _to_json(trainer.record.losses)},
        "precision": trainer.precision.state()}
    if trainer.frozen is not None and trainer.source is not None and not isinstance(trainer.source, nn.Module):
        state["teacher"] = trainer.source.genome.to_json()
        tensors |= {f"teacher:{name}": tensor for name, tensor in trainer.frozen.named_parameters()}
    write_checkpoint(path, tensors, state)


@torch.no_grad()
def _spread_weights(trainer: Trainer) -> None:
    """Start every rank from the first one's weights."""
    if trainer.group.size > 1:
        given = trainer.group.spread({name: tensor.cpu() for name, tensor in trainer.held.items()})
        for name, tensor in trainer.held.items():
            tensor.copy_(given[name])


def _to_json(losses: list[float]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def _from_json(losses: list[float | None]) -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]
