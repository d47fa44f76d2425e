"""The modules of the residual topologies: stacks of layers that hand their outputs on in other ways.

Legend: B batch, T tokens, D width, N streams, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..joined import JoinedBlock
from ..model import BlockModule, Shared, Sublayer
from .running import as_sequence, initial_state, step_part, without_attention

__all__ = ["DenseLayers", "DilatedDenseLayers", "HyperLayers", "LadderLayers", "SharingLayers"]

States = list[Any]


class Units(nn.Module):
    """Layers seen as units that each give a change of the stream: the sublayers of a block, or a whole macro.

    A subclass says in `combine` how units and stream meet; it is called with one function per unit.
    """

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def combine(self, x_BTD: Tensor, units: list[Any]) -> Tensor:
        """The stream after all units; each is called once, in order, with the stream it reads."""
        raise TypeError(f"{type(self).__name__} must define combine(x, units)")

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        return self.combine(x_BTD, [change(unit, shared) for _, _, unit in self.units()])

    def step(self, x_BTD: Tensor, state: list[States], shared: Shared | None = None) -> tuple[Tensor, list[States]]:
        """The next tokens; one state per unit, by layer."""
        after: list[States] = [[None] * len(states) for states in state]

        def stepping(layer: int, number: int, unit: nn.Module) -> Any:
            def run(x: Tensor) -> Tensor:
                y, after[layer][number] = step_change(unit, x, state[layer][number], shared)
                return y
            return run

        return self.combine(x_BTD, [stepping(*entry) for entry in self.units()]), after

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[States]:
        states: list[States] = [[] for _ in self.layers]
        for layer, _, unit in self.units():
            states[layer].append(initial_state(unit, batch, dtype, device))
        return states

    def units(self) -> Iterator[tuple[int, int, nn.Module]]:
        """(layer, number within it, module) of every unit in order."""
        for index, layer in enumerate(self.layers):
            parts = [part for _, part in layer.sublayers()] if isinstance(layer, BlockModule) else [layer]
            for number, part in enumerate(parts):
                yield index, number, part


def change(unit: nn.Module, shared: Shared | None) -> Any:
    """What a unit adds to the stream, as a function of the stream."""
    if isinstance(unit, Sublayer):
        return lambda x_BTD: unit.branch(x_BTD, shared)
    return lambda x_BTD: as_sequence(unit, x_BTD, True, shared) - x_BTD


def step_change(unit: nn.Module, x_BTD: Tensor, state: Any, shared: Shared | None) -> tuple[Tensor, Any]:
    """`change` of the next tokens, with a state."""
    if isinstance(unit, Sublayer):
        return unit.step_branch(x_BTD, state, shared)
    y_BTD, state = step_part(unit, x_BTD, state, True, shared)
    return y_BTD - x_BTD, state


class LadderLayers(Units):
    """Unit k reads the stream from before unit k - 1 added to it."""

    def combine(self, x_BTD: Tensor, units: list[Any]) -> Tensor:
        before_BTD = x_BTD
        for unit in units:
            y_BTD = unit(before_BTD)
            before_BTD, x_BTD = x_BTD, x_BTD + y_BTD
        return x_BTD


class HyperLayers(Units):
    """Several streams, mixed before and after every unit."""

    def __init__(self, layers: list[nn.Module], width: int, units: int, streams: int, dynamic: bool):
        super().__init__(layers)
        self.streams, self.dynamic = streams, dynamic
        self.mix = nn.Parameter(torch.zeros(units, streams, streams + 1))
        self.write = nn.Parameter(torch.zeros(units, streams))
        if dynamic:
            self.mix_by_token = nn.Parameter(torch.zeros(units, width, streams + 1))
            self.write_by_token = nn.Parameter(torch.zeros(units, width))
            self.mix_scale = nn.Parameter(torch.full((units,), 0.01))
            self.write_scale = nn.Parameter(torch.full((units,), 0.01))

    def combine(self, x_BTD: Tensor, units: list[Any]) -> Tensor:
        x_BTND = x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.streams, x_BTD.shape[-1])
        for k, unit in enumerate(units):
            mix_NM, write_N = self.weights(k, x_BTND)
            mixed_BTMD = torch.matmul(mix_NM.mT, x_BTND)
            y_BTD = unit(mixed_BTMD[..., 0, :])
            x_BTND = mixed_BTMD[..., 1:, :] + write_N.unsqueeze(-1) * y_BTD.unsqueeze(-2)
        return x_BTND.sum(-2)

    def weights(self, k: int, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """How unit k mixes the streams (first column: what it reads) and how its output is written to them."""
        first_N1 = torch.zeros(self.streams, 1, dtype=x_BTND.dtype, device=x_BTND.device)
        first_N1[k % self.streams] = 1
        mix_NM = torch.cat([first_N1, torch.eye(self.streams, dtype=x_BTND.dtype, device=x_BTND.device)], -1) + self.mix[k]
        write_N = 1 + self.write[k]
        if self.dynamic:
            normed_BTND = x_BTND * torch.rsqrt(x_BTND.square().mean(-1, keepdim=True) + 1e-6)
            mix_NM = mix_NM + self.mix_scale[k] * torch.tanh(normed_BTND @ self.mix_by_token[k])
            write_N = write_N + self.write_scale[k] * torch.tanh(normed_BTND @ self.write_by_token[k, :, None]).squeeze(-1)
        return mix_NM, write_N


class DenseLayers(nn.Module):
    """After every layer the stream is a weighted sum of the input and of all outputs so far."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.weights = nn.Parameter(torch.zeros(len(layers) * (len(layers) + 3) // 2))

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        history = [x_BTD]
        for layer in self.layers:
            history.append(as_sequence(layer, x_BTD, True, shared))
            x_BTD = self.average(history)
        return x_BTD

    def step(self, x_BTD: Tensor, state: States, shared: Shared | None = None) -> tuple[Tensor, States]:
        """The next tokens, with a state per layer."""
        history, after = [x_BTD], []
        for layer, before in zip(self.layers, state, strict=True):
            y_BTD, new = step_part(layer, x_BTD, before, True, shared)
            history.append(y_BTD)
            after.append(new)
            x_BTD = self.average(history)
        return x_BTD, after

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> States:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def average(self, history: list[Tensor]) -> Tensor:
        """The newest, plus the learned weights times all."""
        count = len(history)
        first = (count - 2) * (count + 1) // 2                  # where the row of this layer starts
        total = history[-1]
        for j, h_BTD in enumerate(history):
            total = total + self.weights[first + j] * h_BTD
        return total


class DilatedDenseLayers(DenseLayers):
    """A weighted sum after every `period` layers, of every `dilation`-th output so far."""

    def __init__(self, layers: list[nn.Module], dilation: int, period: int):
        super().__init__(layers)
        self.dilation, self.period = dilation, period
        pairs = sum(i // dilation + 1 for i in range(period, len(layers) + 1, period))
        self.weights = nn.Parameter(torch.zeros(pairs))

    def average(self, history: list[Tensor]) -> Tensor:
        """The newest, plus the learned weights times those that take part."""
        number = len(history) - 1
        total = history[-1]
        if number % self.period == 0:
            first = sum(i // self.dilation + 1 for i in range(self.period, number, self.period))
            for j, h_BTD in enumerate(history[number % self.dilation::self.dilation]):
                total = total + self.weights[first + j] * h_BTD
        return total


class SharingLayers(nn.Module):
    """Blocks that hand keys and values to one another, each pass anew; layers of another kind see nothing of them."""

    shares = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        own = without_attention(shared) or {}
        for layer in self.layers:
            x_BTD = as_sequence(layer, x_BTD, True, handed(layer, own))
        return x_BTD

    def step(self, x_BTD: Tensor, state: States, shared: Shared | None = None) -> tuple[Tensor, States]:
        """The next tokens, with a state per layer."""
        own, after = without_attention(shared) or {}, []
        for layer, before in zip(self.layers, state, strict=True):
            x_BTD, new = step_part(layer, x_BTD, before, True, handed(layer, own))
            after.append(new)
        return x_BTD, after

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> States:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]


def handed(layer: nn.Module, shared: Shared) -> Shared | None:
    """What a layer gets of what its stream shares: keys and values are for blocks alone."""
    return shared if isinstance(layer, BlockModule | JoinedBlock) else without_attention(shared)
