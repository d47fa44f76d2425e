"""How much the entries of an axis matter, by one of three criteria.

    weight       the size of its weights: the root of the sum of squares per entry, relative to the mean entry. Parameters
                 of one operator act one after the other, so theirs are multiplied; those of the residual stream are
                 added (group norms, after NViT, Yang et al., 2021)
    activation   the size of what passes through it: inputs of a matrix times the weights that read them (Wanda, Sun et
                 al., 2023, summed as in Minitron, Muralidharan et al., 2024); as `weight` where no matrix reads the axis
    gradient     how much the loss changes when it goes, to first order: |sum of weight * gradient| per batch (Molchanov
                 et al., 2019), which is the gradient to a mask of its entries (Michel et al., 2019)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...registry import unknown
from .permuting import AxisGroup, Weight, summed

__all__ = ["CRITERIA", "Loss", "importance", "prediction_loss"]

CRITERIA = ("weight", "activation", "gradient")
Loss = Callable[[Tensor, Tensor], Tensor]
Model = Callable[[Any], Tensor]


def importance(groups: list[AxisGroup], criteria: str, weights: list[Weight], model: Model,
               batches: Iterable[Any], loss: Loss) -> list[Tensor]:
    """The scores of every group's entries, shaped as its permutation; larger matters more.

    batches: pairs (inputs, targets), or objects with these attributes. `weight` reads none of them. Raises ValueError for
    an unknown criterion, and where there is no batch or a score is not finite.
    """
    if criteria not in CRITERIA:
        raise ValueError(unknown("criterion", criteria, CRITERIA))
    seen = [_pair(batch) for batch in batches] if criteria != "weight" else []
    if criteria != "weight" and not seen:
        raise ValueError(f"the criterion {criteria!r} needs batches: got none; give some of (inputs, targets)")
    if criteria == "weight":
        scores = [_by_weight(group) for group in groups]
    elif criteria == "activation":
        energies = _read(weights, model, [inputs for inputs, _ in seen])
        scores = [_by_activation(group, energies) for group in groups]
    else:
        scores = _by_gradient(groups, weights, model, seen, loss)
    for group, score in zip(groups, scores, strict=True):
        if not bool(score.isfinite().all()):
            raise ValueError(f"importance must be finite: got {score.min()} to {score.max()} for axis {group.name!r} of "
                             f"{group.owner or 'the residual stream'}; train from sound weights")
    return scores


def prediction_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next token or of the class."""
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


def _pair(batch: Any) -> tuple[Any, Any]:
    if hasattr(batch, "inputs"):
        return batch.inputs, batch.targets
    return (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)


def _relative(group: AxisGroup, energies: Mapping[str, Tensor]) -> list[Tensor]:
    """The root of each parameter's energy per entry, over its mean: one tensor per parameter that has any."""
    found: dict[str, Tensor] = {}
    for occurrence in group.occurrences:
        name = occurrence.weight.name
        if name in energies:
            part = summed(group, occurrence, energies[name])
            found[name] = found[name] + part if name in found else part
    roots = [energy.double().sqrt() for energy in found.values()]
    return [root / root.mean() for root in roots if bool(root.any())]


def _by_weight(group: AxisGroup) -> Tensor:
    every = {o.weight.name: o.weight for o in group.occurrences if not o.weight.declared.statistic}
    matrices = {name: weight for name, weight in every.items() if weight.tensor.ndim > 1} or every
    parts = _relative(group, {name: weight.tensor.detach().square() for name, weight in matrices.items()})
    if not parts:
        return torch.zeros(group.shape, dtype=torch.float64)
    return torch.stack(parts).sum(0) if group.is_stream else torch.stack(parts).prod(0)


def _by_activation(group: AxisGroup, energies: Mapping[str, Tensor]) -> Tensor:
    """Only where the axis is the input of matrices whose inputs were seen, or numbers such matrices."""
    read = {o.weight.name: energies[o.weight.name] for o in group.occurrences
            if o.weight.name in energies and o.placed.dim != o.weight.tensor.ndim - 2}
    parts = _relative(group, read)
    return torch.stack(parts).sum(0) if parts else _by_weight(group)


@torch.no_grad()
def _read(weights: list[Weight], model: Model, inputs: list[Any]) -> dict[str, Tensor]:
    """Weight squared times the sum of its inputs' squares, for every matrix that multiplied something as it is stored."""
    seen = _Inputs({weight.name: weight.tensor for weight in weights})
    with seen:
        for each in inputs:
            model(each)
    stored = {weight.name: weight.tensor for weight in weights}
    return {name: stored[name].detach().square() * energy for name, energy in seen.energies.items()}


class _Inputs(TorchFunctionMode):
    """Sums the squares of what `F.linear` multiplies by known tensors, or by the matrices a known tensor is a stack of."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.tensors = tensors
        self.homes: dict[int, list[str]] = {}                 # storages may hold several tensors, as loaded files do
        for name, tensor in tensors.items():
            if tensor.ndim > 1:
                self.homes.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        self.energies: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1:
            self._note(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor, matrix: Tensor) -> None:
        for name in self.homes.get(matrix.untyped_storage().data_ptr(), ()):
            whole = self.tensors[name]
            place, rest = divmod(int(matrix.storage_offset() - whole.storage_offset()), matrix.numel())
            if matrix.shape != whole.shape[-2:] or rest or not 0 <= place * matrix.numel() < whole.numel():
                continue
            if name not in self.energies:
                shape = (*whole.shape[:-2], 1, whole.shape[-1])
                self.energies[name] = torch.zeros(shape, dtype=torch.float64, device=whole.device)
            self.energies[name].view(-1, whole.shape[-1])[place] += x.detach().flatten(0, -2).double().square().sum(0)


def _by_gradient(groups: list[AxisGroup], weights: list[Weight], model: Model, pairs: list[tuple[Any, Any]],
                 loss: Loss) -> list[Tensor]:
    trained = [weight for weight in weights if weight.tensor.requires_grad]
    scores = [torch.zeros(group.shape, dtype=torch.float64, device=weights[0].tensor.device) for group in groups]
    for inputs, targets in pairs:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(model(inputs), targets), [w.tensor for w in trained], allow_unused=True)
        moved = {weight.name: weight.tensor.detach().double() * gradient
                 for weight, gradient in zip(trained, gradients, strict=True) if gradient is not None}
        for score, group in zip(scores, groups, strict=True):
            score += _first_order(group, moved)
    return scores


def _first_order(group: AxisGroup, moved: Mapping[str, Tensor]) -> Tensor:
    found: dict[str, Tensor] = {}
    for occurrence in group.occurrences:
        name = occurrence.weight.name
        if name in moved:
            part = summed(group, occurrence, moved[name])
            found[name] = found[name] + part if name in found else part
    total = torch.zeros(group.shape, dtype=torch.float64)
    for part in found.values():
        total = total.to(part.device) + part.abs()
    return total
