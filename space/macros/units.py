"""Layers seen as units that each give a change of the stream: the sublayers of a plain block, or a whole part.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model import BlockModule, Sublayer
from .running import as_sequence, initial_state, step_part

__all__ = ["UnitLayers", "change", "step_change", "units_of"]


def units_of(layer: nn.Module) -> list[nn.Module]:
    """The sublayers of a plain block; any other part is a unit as a whole."""
    return [sublayer for _, sublayer in layer.sublayers()] if isinstance(layer, BlockModule) else [layer]


def change(unit: nn.Module, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
    """What a unit adds to the stream."""
    if isinstance(unit, Sublayer):
        return unit.branch(x_BTD, shared)
    return as_sequence(unit, x_BTD, True, shared) - x_BTD


def step_change(unit: nn.Module, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
    """What a unit adds to the stream of the next tokens, and its state after them."""
    if isinstance(unit, Sublayer):
        return unit.step_branch(x_BTD, state, shared)
    y_BTD, state = step_part(unit, x_BTD, state, True, shared)
    return y_BTD - x_BTD, state


class UnitLayers(nn.Module):
    """Units that read from, and write to, a list of tensors.

    A subclass says what the list is at first (`begin`), what unit k reads of it (`read`), what it is after unit k gave a
    change (`write`), and what leaves (`finish`).
    """

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def units(self) -> list[nn.Module]:
        return [unit for layer in self.layers for unit in units_of(layer)]

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        held = self.begin(x_BTD)
        for k, unit in enumerate(self.units()):
            held = self.write(k, held, change(unit, self.read(k, held), shared))
        return self.finish(held)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(unit, batch, dtype, device) for unit in self.units()]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per unit."""
        held, after = self.begin(x_BTD), []
        for k, (unit, before) in enumerate(zip(self.units(), state, strict=True)):
            y_BTD, new = step_change(unit, self.read(k, held), before, shared)
            held = self.write(k, held, y_BTD)
            after.append(new)
        return self.finish(held), after

    def begin(self, x_BTD: Tensor) -> list[Tensor]:
        return [x_BTD]

    def read(self, k: int, held: list[Tensor]) -> Tensor:
        return held[0]

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        return [held[0] + y_BTD]

    def finish(self, held: list[Tensor]) -> Tensor:
        return held[0]
