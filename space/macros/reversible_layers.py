"""Layers whose inputs follow from their outputs, so that training need not remember them.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ..model import Shared
from .residual_layers import Units, change

__all__ = ["ReversibleLayers"]


class ReversibleLayers(Units):
    """Two streams; every unit reads one and adds to the other, in turn. In training the inputs of units are computed from
    their outputs on the way back, unless something beside the stream is handed on."""

    def combine(self, x_BTD: Tensor, units: list[Any]) -> Tensor:
        first_BTD = second_BTD = x_BTD
        for unit in units:
            first_BTD, second_BTD = second_BTD, first_BTD + unit(second_BTD)
        return (first_BTD + second_BTD) / 2

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        if shared or not torch.is_grad_enabled():
            return super().forward(x_BTD, shared)
        units = [unit for _, _, unit in self.units()]
        # As they are now: whoever lends a module its weights takes them back before the way back begins.
        parameters = [p for unit in units for p in unit.parameters()]
        y_BTD: Tensor = Recomputed.apply(x_BTD, units, *parameters)                  # type: ignore[no-untyped-call]
        return y_BTD


class Change(nn.Module):
    """What a unit adds to the stream, as a module, so that it can be called with given weights."""

    def __init__(self, unit: nn.Module):
        super().__init__()
        self.unit = unit

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = change(self.unit, None)(x_BTD)
        return y_BTD


class Recomputed(torch.autograd.Function):
    """The streams after all units, from which the way back starts; nothing in between is saved."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, units: list[nn.Module], *parameters: Tensor) -> Tensor:      # type: ignore[override]
        first_BTD = second_BTD = x_BTD
        for unit in units:
            first_BTD, second_BTD = second_BTD, first_BTD + change(unit, None)(second_BTD)
        ctx.units = units
        ctx.save_for_backward(first_BTD, second_BTD, *parameters)
        return (first_BTD + second_BTD) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Any, ...]:                                       # type: ignore[override]
        first_BTD, second_BTD, *parameters = ctx.saved_tensors
        to_first = to_second = grad_BTD / 2
        found: list[Tensor | None] = []
        for unit in reversed(ctx.units):
            names = [f"unit.{name}" for name, _ in unit.named_parameters()]
            own = parameters[len(parameters) - len(names):]
            del parameters[len(parameters) - len(names):]
            given = {name: p.detach().requires_grad_(p.requires_grad) for name, p in zip(names, own, strict=True)}
            with torch.enable_grad():
                read_BTD = first_BTD.detach().requires_grad_()
                y_BTD = functional_call(Change(unit), given, (read_BTD,))
            wanted = [read_BTD, *(p for p in given.values() if p.requires_grad)]
            to_read, *rest = torch.autograd.grad(y_BTD, wanted, to_second, allow_unused=True)
            left = iter(rest)
            found = [next(left) if p.requires_grad else None for p in given.values()] + found
            first_BTD, second_BTD = second_BTD - y_BTD.detach(), first_BTD
            to_first, to_second = to_second, to_first if to_read is None else to_first + to_read
        return to_first + to_second, None, *found
