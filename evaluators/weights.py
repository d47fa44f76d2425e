"""The tensors that a training holds, and which entries of them its subnets touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..space.elastic.supernet import touch_masks as union_masks
from .optim import Touch

__all__ = ["held_tensors", "is_supernet", "touch_masks"]


def is_supernet(model: nn.Module) -> bool:
    """Whether subnets can be taken from a module."""
    return hasattr(model, "subnet")


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything a step may change: shared tensors by address, or a module's parameters and buffers by name."""
    if is_supernet(model):
        return dict(model.tensors)                                                         # type: ignore[arg-type]
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def touch_masks(subnets: Iterable[nn.Module], parameters: Mapping[str, Tensor]) -> dict[str, Touch]:
    """The union of what `subnets` use of `parameters`, a mask per shared tensor; None where that is all of it."""
    masks = union_masks(subnets)                                                           # type: ignore[arg-type]
    return {address: mask for address, mask in masks.items() if address in parameters}   # no statistics
