# mypy: ignore-errors
# The text below goes into exported files, where comments for a type checker have no place.
"""Residual topologies over sublayers in an exported file, as they stand before they are specialised.

Same computation, in the same order, as `space/macros/residual_layers.py`.

Legend: B batch, T tokens, D width, N streams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..macros.running import as_sequence, initial_state, step_part
from .skeleton import Layer, Sublayer

__all__ = ["HyperLayers", "LadderLayers", "ReversibleLayers", "change", "step_change", "units_of"]


def units_of(layer: nn.Module) -> list[nn.Module]:
    """The sublayers of a layer; any other part is a unit as a whole."""
    return list(layer.children()) if isinstance(layer, Layer) else [layer]


def change(unit: nn.Module, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
    """What a unit adds to the stream."""
    y_BTD = as_sequence(unit, x_BTD, True, shared)
    return y_BTD if isinstance(unit, Sublayer) else y_BTD - x_BTD


def step_change(unit: nn.Module, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
    """What a unit adds to the stream of the next tokens, and its state after them."""
    y_BTD, state = step_part(unit, x_BTD, state, True, shared)
    return (y_BTD if isinstance(unit, Sublayer) else y_BTD - x_BTD), state


class LadderLayers(nn.Module):
    """Every unit reads the stream from before the previous unit added to it; the sublayers are the units."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def units(self) -> list[nn.Module]:
        return [unit for layer in self.layers for unit in units_of(layer)]

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        before_BTD = x_BTD
        for unit in self.units():
            before_BTD, x_BTD = x_BTD, x_BTD + change(unit, before_BTD, shared)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(unit, batch, dtype, device) for unit in self.units()]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per unit."""
        before_BTD, after = x_BTD, []
        for unit, held in zip(self.units(), state, strict=True):
            y_BTD, new = step_change(unit, before_BTD, held, shared)
            before_BTD, x_BTD = x_BTD, x_BTD + y_BTD
            after.append(new)
        return x_BTD, after


class ReversibleLayers(nn.Module):
    """Two streams; every unit reads one and adds to the other, in turn; the sublayers are the units."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def units(self) -> list[nn.Module]:
        return [unit for layer in self.layers for unit in units_of(layer)]

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        first_BTD = second_BTD = x_BTD
        for unit in self.units():
            first_BTD, second_BTD = second_BTD, first_BTD + change(unit, second_BTD, shared)
        return (first_BTD + second_BTD) / 2

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(unit, batch, dtype, device) for unit in self.units()]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per unit."""
        first_BTD, second_BTD, after = x_BTD, x_BTD, []
        for unit, held in zip(self.units(), state, strict=True):
            y_BTD, new = step_change(unit, second_BTD, held, shared)
            first_BTD, second_BTD = second_BTD, first_BTD + y_BTD
            after.append(new)
        return (first_BTD + second_BTD) / 2, after


class HyperLayers(nn.Module):
    """Several streams, mixed before and after every unit; the sublayers are the units."""

    shares = True

    def __init__(self, layers: list[nn.Module], width: int, units: int, streams: int, dynamic: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.streams, self.dynamic = streams, dynamic
        self.mix = nn.Parameter(torch.zeros(units, streams, streams + 1))
        self.write = nn.Parameter(torch.zeros(units, streams))
        if dynamic:
            self.mix_by_token = nn.Parameter(torch.zeros(units, width, streams + 1))
            self.write_by_token = nn.Parameter(torch.zeros(units, width))
            self.mix_scale = nn.Parameter(torch.full((units,), 0.01))
            self.write_scale = nn.Parameter(torch.full((units,), 0.01))

    def units(self) -> list[nn.Module]:
        return [unit for layer in self.layers for unit in units_of(layer)]

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        x_BTND = self.spread(x_BTD)
        for k, unit in enumerate(self.units()):
            read_BTD, x_BTND, write_N1 = self.mixed(k, x_BTND)
            x_BTND = x_BTND + write_N1 * change(unit, read_BTD, shared).unsqueeze(-2)
        return x_BTND.sum(-2)

    def spread(self, x_BTD: Tensor) -> Tensor:
        """Equal copies of the stream."""
        return x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.streams, x_BTD.shape[-1])

    def mixed(self, k: int, x_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What unit k reads, the streams it adds to, and how much of its output each of them gets."""
        first_N1 = torch.zeros(self.streams, 1, dtype=x_BTND.dtype, device=x_BTND.device)
        first_N1[k % self.streams] = 1
        mix_NM = torch.cat([first_N1, torch.eye(self.streams, dtype=x_BTND.dtype, device=x_BTND.device)], -1) + self.mix[k]
        write_N = 1 + self.write[k]
        if self.dynamic:
            normed_BTND = x_BTND * torch.rsqrt(x_BTND.square().mean(-1, keepdim=True) + 1e-6)
            mix_NM = mix_NM + self.mix_scale[k] * torch.tanh(normed_BTND @ self.mix_by_token[k])
            write_N = write_N + self.write_scale[k] * torch.tanh(normed_BTND @ self.write_by_token[k, :, None]).squeeze(-1)
        mixed_BTMD = torch.matmul(mix_NM.mT, x_BTND)
        return mixed_BTMD[..., 0, :], mixed_BTMD[..., 1:, :], write_N.unsqueeze(-1)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(unit, batch, dtype, device) for unit in self.units()]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per unit."""
        x_BTND, after = self.spread(x_BTD), []
        for k, (unit, held) in enumerate(zip(self.units(), state, strict=True)):
            read_BTD, x_BTND, write_N1 = self.mixed(k, x_BTND)
            y_BTD, new = step_change(unit, read_BTD, held, shared)
            x_BTND = x_BTND + write_N1 * y_BTD.unsqueeze(-2)
            after.append(new)
        return x_BTND.sum(-2), after
