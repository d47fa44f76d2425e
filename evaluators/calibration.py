"""Batch statistics of an extracted subnet, measured anew: those of the supernet are of no subnet in particular.

A supernet's running means and variances are moved by whatever subnets were visited, which differ in what they feed
a layer. Slimmable networks (Yu et al., 2019), Once-for-all (Cai et al., 2020) and BigNAS (Yu et al., 2020)
therefore measure them again for each subnet on a little training data before it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .precision import Precision

if TYPE_CHECKING:
    from .tasks.base import Task

__all__ = ["calibrate", "has_statistics"]

CHANNELS_SECOND = nn.modules.batchnorm._BatchNorm      # torch's own; everything else here has channels last


def has_statistics(module: nn.Module) -> bool:
    """Whether anything in `module` keeps running statistics."""
    return bool(_normalisations(module))


def calibrate(module: nn.Module, task: Task, batches: int = 16, seed: int = 0, exact: bool = False,
              dtype: str | None = None) -> nn.Module:
    """Measure the running statistics of `module` on the first `batches` training batches; changes it in place.

    What is calibrated are the modules in it with `running_mean` and `running_var`, be these parameters or buffers;
    channels are the last axis of their input, in torch's own batch normalisations the second. Each gets the mean
    and the unbiased variance of everything it saw, over all examples, positions and iterations of a loop together,
    summed in double precision: the order of batches does not matter, and batches of unequal size count by their
    entries. Nothing else changes, and the same arguments give the same bits. Without such modules nothing runs.

    Args:
        batches: training batches; the held-out splits are never looked at.
        seed: of the training batches, as in `train`.
        exact: one pass over the batches per normalisation, in the order of the forward pass, each with those before
            it already calibrated: the statistics are then exactly those of the module in evaluation mode, except
            where one normalisation runs several times in a pass. Otherwise one pass for all, as while training.
            What is being measured normalises by its own batch meanwhile.
        dtype: a short type to compute in, as in `train`; sums are taken in double precision all the same.

    Returns:
        `module`, in evaluation mode.

    Raises:
        ValueError: fewer than one batch.
    """
    if batches < 1:
        raise ValueError(f"calibration needs at least one training batch: got batches={batches}; use 16")
    found = _normalisations(module)
    module.eval()
    if not found:
        return module
    device = next(module.parameters()).device
    inputs = [task.batch("train", step, seed).inputs.to(device) for step in range(batches)]
    for layers in ([[layer] for layer in _in_order(module, found, inputs[0])] if exact else [found]):
        _measure(module, layers, inputs, Precision(dtype))
    return module


class Moments:
    """What a layer saw, per channel, in double precision: sums are taken around the first batch's mean."""

    def __init__(self, layer: nn.Module):
        self.layer: Any = layer
        self.count = 0
        like: Any = layer.running_mean
        empty = torch.zeros_like(like, dtype=torch.float64)
        self.guess, self.sum, self.square = empty, empty.clone(), empty.clone()

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        x = given[0].detach().double()
        x_ND = (x.movedim(1, -1) if isinstance(layer, CHANNELS_SECOND) else x).reshape(-1, self.guess.numel())
        if not self.count:
            self.guess = x_ND.mean(0)
        off_ND = x_ND - self.guess
        self.count += len(x_ND)
        self.sum += off_ND.sum(0)
        self.square += (off_ND ** 2).sum(0)

    def write(self) -> None:
        """Put mean and unbiased variance into the layer; one that never ran keeps what it has."""
        if not self.count:
            return
        mean = self.sum / self.count
        variance = (self.square - self.count * mean ** 2) / max(1, self.count - 1)
        self.layer.running_mean.copy_(self.guess + mean)
        self.layer.running_var.copy_(variance.clamp(min=0))


@torch.no_grad()
def _measure(module: nn.Module, layers: list[nn.Module], inputs: list[Tensor], precision: Precision) -> None:
    """Run all batches and write what the layers saw."""
    moments = [Moments(layer) for layer in layers]
    with _hooked([(m.layer, m) for m in moments]), _training(layers):
        for each in inputs:
            precision.logits(module, each)
    for m in moments:
        m.write()


def _normalisations(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules()
            if getattr(part, "running_mean", None) is not None and getattr(part, "running_var", None) is not None]


@torch.no_grad()
def _in_order(module: nn.Module, layers: list[nn.Module], inputs: Tensor) -> list[nn.Module]:
    """The layers in the order a forward pass meets them."""
    met: dict[nn.Module, None] = {}
    with _hooked([(layer, lambda layer, given: met.setdefault(layer)) for layer in layers]):
        module(inputs)
    return list(met)


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, hook in hooks:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def _training(layers: list[nn.Module]) -> Iterator[None]:
    """The layers in training mode, the rest of the module as it is."""
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
