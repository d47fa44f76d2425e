# mypy: ignore-errors
# The text below goes into exported files, where comments for a type checker have no place.
"""Stacks of layers in an exported file, as they stand before they are specialised.

Same computation, in the same order, as `Layers` of `space/model.py` and `SharingLayers` of `space/macros/`.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..macros.running import as_sequence, initial_state, step_part, without_attention
from .skeleton import Stepping

__all__ = ["AdaptedLayers", "Layers", "LoopedLayers", "SharingLayers", "handed"]


class Layers(nn.Module):
    """Layers one after the other."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        for layer in self.layers:
            x_BTD = as_sequence(layer, x_BTD, True, shared)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per layer."""
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x_BTD, new = step_part(layer, x_BTD, before, True, shared)
            after.append(new)
        return x_BTD, after


class LoopedLayers(nn.Module):
    """Layers that run `times` times over with the same weights."""

    shares = True

    def __init__(self, layers: list[nn.Module], times: int):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        for _ in range(self.times):
            for layer in self.layers:
                x_BTD = as_sequence(layer, x_BTD, True, shared)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]

    def step(self, x_BTD: Tensor, state: list[list[Any]],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, with a state per iteration and layer."""
        after = []
        for states in state:
            after.append([])
            for layer, before in zip(self.layers, states, strict=True):
                x_BTD, new = step_part(layer, x_BTD, before, True, shared)
                after[-1].append(new)
        return x_BTD, after


class AdaptedLayers(nn.Module):
    """Layers that run `times` times over; in iteration t every matrix W becomes W + B[t] @ A[t]."""

    shares = True

    def __init__(self, layers: list[nn.Module], times: int, lora: dict[str, nn.Module]):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times
        self.lora = nn.ModuleDict(lora)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        for iteration in range(self.times):
            for index, layer in enumerate(self.layers):
                x_BTD = functional_call(layer, self.adapted(iteration, index), (x_BTD, shared))
        return x_BTD

    def adapted(self, iteration: int, index: int) -> dict[str, Tensor]:
        """A layer's parameters in one iteration."""
        weights = {}
        for name, weight in self.layers[index].named_parameters():
            key = f"layers_{index}_" + name.replace(".", "_")
            weights[name] = weight + self.lora[key](iteration) if key in self.lora else weight
        return weights

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]

    def step(self, x_BTD: Tensor, state: list[list[Any]],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, with a state per iteration and layer."""
        after = []
        for iteration, states in enumerate(state):
            after.append([])
            for index, layer in enumerate(self.layers):
                weights = {f"layer.{name}": weight for name, weight in self.adapted(iteration, index).items()}
                x_BTD, new = functional_call(Stepping(layer), weights, (x_BTD, states[index], shared))
                after[-1].append(new)
        return x_BTD, after


class SharingLayers(nn.Module):
    """Layers that hand keys and values to one another, anew in every pass."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        own = {} if shared is None else without_attention(shared)
        for layer in self.layers:
            x_BTD = as_sequence(layer, x_BTD, True, handed(layer, own))
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per layer."""
        own = {} if shared is None else without_attention(shared)
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x_BTD, new = step_part(layer, x_BTD, before, True, handed(layer, own))
            after.append(new)
        return x_BTD, after


def handed(layer: nn.Module, shared: dict[str, Any]) -> dict[str, Any] | None:
    """What a layer gets of what its stream shares: keys and values are for blocks alone."""
    return shared if hasattr(layer, "mixer") else without_attention(shared)
