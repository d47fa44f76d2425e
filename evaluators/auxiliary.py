"""Losses beside the task's that a training adds up: what routers, gates, chunks, faster streams and exits learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..space.elastic.supernet import Subnet
from ..space.macros.dynamic_chunks import DynamicChunkLayers
from ..space.macros.exits import ExitLayers
from ..space.macros.gated import GatedLayers
from ..space.macros.multi_rate import MultiRateLayers
from ..space.macros.routed import RoutedLayers
from .chunking import ratio_loss
from .depth import distillation_of, every_exit, halting_of, mean_gate, rate_loss, routing_loss

if TYPE_CHECKING:
    from ..space.space import Space
    from .tasks.base import Batch, Task

__all__ = ["AUXILIARY", "applying", "check_auxiliary", "with_auxiliary"]

TRIED = 64          # subnets of a supernet that are looked through for layers with a loss


class Auxiliary(NamedTuple):
    """The layers that a loss is about, the macro that makes them, and (model, inputs) -> (logits, loss).

    Without a function: a loss of exits, which are all told from one pass.
    """

    layers: type | tuple[type, ...]
    macro: str
    loss: Callable[[Any, Tensor], tuple[Tensor, Tensor]] | None = None


EXITS = (ExitLayers, MultiRateLayers)
AUXILIARY: dict[str, Auxiliary] = {
    "ratio": Auxiliary(DynamicChunkLayers, "DynamicChunks", ratio_loss),
    "routing": Auxiliary(RoutedLayers, "Routed", routing_loss),
    "gate": Auxiliary(GatedLayers, "GatedDepth", mean_gate),
    "rate": Auxiliary(MultiRateLayers, "MultiRate", rate_loss),
    "exits": Auxiliary(EXITS, "EarlyExit"),
    "exit_distillation": Auxiliary(EXITS, "EarlyExit"),
    "halting": Auxiliary(EXITS, "EarlyExit"),
}


def with_auxiliary(model: nn.Module, task: Task, batch: Batch, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The logits, and the sum of these losses by their weights, all from one pass; see `train` for what they are.

    What a model has no layers for counts nothing: subnets of one supernet differ in that.
    """
    held = list(_holder(model).modules())
    found = applying(held, weights)
    parts: list[Tensor] = []
    call: Any = _Called(model, held)
    for name, weight in found.items():
        if AUXILIARY[name].loss is not None:
            call = _Called(_adding(call, name, weight, parts), held)
    of_exits = {name: weight for name, weight in found.items() if AUXILIARY[name].loss is None}
    if of_exits:
        logits, told = _of_exits(call, task, batch, of_exits)
        parts += told
    else:
        logits = call(batch.inputs)
    return logits, torch.stack(parts).sum() if parts else logits.new_zeros(())


def applying(held: Iterable[nn.Module], weights: Mapping[str, float]) -> dict[str, float]:
    """Those of the losses that these modules have layers for."""
    kinds = {type(module) for module in held}
    return {name: weight for name, weight in weights.items() if any(issubclass(k, AUXILIARY[name].layers) for k in kinds)}


def _check_names(weights: Mapping[str, float] | None) -> dict[str, float]:
    for name, weight in (weights or {}).items():
        if name not in AUXILIARY:
            raise ValueError(f"an auxiliary loss is one of {', '.join(AUXILIARY)}: got {name!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"the weight of the auxiliary loss {name!r} is a positive number: got {weight!r}")
    given = {name: float(weight) for name, weight in (weights or {}).items()}
    of_exits = [name for name in given if AUXILIARY[name].loss is None]
    if "rate" in given and of_exits:
        raise ValueError(f"'rate' and the losses of exits take a pass each: got 'rate' with {', '.join(of_exits)}; leave one "
                         "of them out")
    return given


def check_auxiliary(about: nn.Module | Space, weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of auxiliary losses by name, for a model, a supernet or a space.

    Raises ValueError for names, weights and combinations that are none, and for a loss of layers that the model, or as far
    as is tried every network of the space, is without.
    """
    checked = _check_names(weights)
    missing = dict(checked)
    if missing:
        for held in _seen(about):
            missing = {name: missing[name] for name in missing.keys() - applying(held, missing).keys()}
            if not missing:
                break
    for name in sorted(missing):
        raise ValueError(f"the auxiliary loss {name!r} is about {AUXILIARY[name].macro} in a model: got none in "
                         f"{type(about).__name__}; put one into the body, or leave the loss out")
    return checked


class _Called:
    """What a function of a model and inputs takes for the model: another call of the same modules."""

    def __init__(self, call: Callable[[Tensor], Tensor], held: list[nn.Module]):
        self.call, self.held = call, held

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.call(inputs)

    def modules(self) -> list[nn.Module]:
        return self.held


def _adding(call: Any, name: str, weight: float, parts: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A call that leaves its loss in `parts`."""
    def run(inputs: Tensor) -> Tensor:
        loss = AUXILIARY[name].loss
        assert loss is not None
        logits, found = loss(call, inputs)
        parts.append(weight * found)
        return logits

    return run


def _of_exits(call: Any, task: Task, batch: Batch, weights: Mapping[str, float]) -> tuple[Tensor, list[Tensor]]:
    logits, scores = every_exit(call, batch.inputs)
    made: dict[str, Callable[[], Tensor]] = {
        "exits": lambda: torch.stack([task.loss_of(early, batch) for early in logits[:-1]]).mean(),
        "exit_distillation": lambda: distillation_of(logits),
        "halting": lambda: halting_of(logits, scores, batch.targets),
    }
    return logits[-1], [weight * made[name]() for name, weight in weights.items()]


def _holder(model: nn.Module) -> nn.Module:
    """The module whose children run: a subnet of a supernet only lends weights to one."""
    return model.module if isinstance(model, Subnet) else model


def _seen(about: nn.Module | Space) -> Iterator[list[nn.Module]]:
    """The modules of a model; of a supernet and a space those of some networks."""
    space: Any = getattr(about, "space", None) if isinstance(about, nn.Module) else about
    if space is None:
        assert isinstance(about, nn.Module)
        yield list(about.modules())
        return
    for genome in (space.largest(), space.smallest()):
        yield list(space.architecture(genome).build(device="meta").modules())
    for seed in range(TRIED):
        yield list(space.sample(seed).build(device="meta").modules())
