"""The modules of the recursions: stacks of layers that run several times, and what happens between the passes.

Legend: B batch, T tokens, D width, N streams.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..model import Shared, Stepping
from .running import as_sequence, initial_state, step_part

__all__ = ["EncodedRounds", "HyperRounds", "NormedRounds", "Rounds", "Visits"]


class Rounds(nn.Module):
    """Layers in order, `times` times over; a subclass changes what enters a pass, or what becomes of what leaves it.

    `enter` and `leave` know the pass and what `begin` made of the stream; they look at each token alone, so that the
    next tokens may come one by one.
    """

    shares = True

    def __init__(self, layers: list[nn.Module], times: int):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times

    def begin(self, x_BTD: Tensor) -> Tensor:
        """What is handed from pass to pass."""
        return x_BTD

    def enter(self, held: Tensor, iteration: int) -> Tensor:
        """What the layers read."""
        return held

    def leave(self, held: Tensor, y_BTD: Tensor, iteration: int) -> Tensor:
        """What is handed on after the layers gave `y`."""
        return y_BTD

    def end(self, held: Tensor) -> Tensor:
        """The stream again."""
        return held

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        held = self.begin(x_BTD)
        for iteration in range(self.times):
            y_BTD = self.enter(held, iteration)
            for layer in self.layers:
                y_BTD = as_sequence(layer, y_BTD, True, shared)
            held = self.leave(held, y_BTD, iteration)
        return self.end(held)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]

    def step(self, x_BTD: Tensor, state: list[list[Any]],
             shared: Shared | None = None) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, with a state per pass and layer."""
        held, after = self.begin(x_BTD), []
        for iteration in range(self.times):
            y_BTD, states = self.enter(held, iteration), []
            for layer, before in zip(self.layers, state[iteration], strict=True):
                y_BTD, new = step_part(layer, y_BTD, before, True, shared)
                states.append(new)
            held = self.leave(held, y_BTD, iteration)
            after.append(states)
        return self.end(held), after


class EncodedRounds(Rounds):
    """A learned vector of the pass is added to what enters it."""

    def __init__(self, layers: list[nn.Module], times: int, width: int):
        super().__init__(layers, times)
        self.encoding = nn.Parameter(torch.zeros(times, width))

    def enter(self, held: Tensor, iteration: int) -> Tensor:
        return held + self.encoding[iteration]


class HyperRounds(Rounds):
    """Several streams; a pass reads a mixture of them and is written to each, both weighed by all of them."""

    def __init__(self, layers: list[nn.Module], times: int, width: int, streams: int):
        super().__init__(layers, times)
        self.streams = streams
        self.weigh = nn.Parameter(torch.zeros(times, 3 * streams, streams * width))
        self.offset = nn.Parameter(torch.zeros(times, 3 * streams))
        self.place = nn.Parameter(torch.zeros(times, width))

    def begin(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.streams, x_BTD.shape[-1])

    def weights(self, held_BTND: Tensor, iteration: int, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of the weights of every stream: N to read, N to keep, N to write."""
        flat = held_BTND.flatten(-2)
        normed = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
        rows = slice(first, last)
        return torch.sigmoid(F.linear(normed, self.weigh[iteration, rows], self.offset[iteration, rows])).unsqueeze(-1)

    def enter(self, held: Tensor, iteration: int) -> Tensor:
        return (self.weights(held, iteration, 0, self.streams) * held).sum(-2)

    def leave(self, held: Tensor, y_BTD: Tensor, iteration: int) -> Tensor:
        kept, write = self.weights(held, iteration, self.streams, 3 * self.streams).chunk(2, dim=-2)
        return kept * held + 2 * write * (y_BTD + self.place[iteration]).unsqueeze(-2)

    def end(self, held: Tensor) -> Tensor:
        return held.mean(-2)


class NormedRounds(nn.Module):
    """Blocks whose norms have a gain, and a bias where they have one, of each pass; all other weights are shared."""

    shares = True

    def __init__(self, layers: list[nn.Module], times: int, width: int):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times
        self.gain = nn.Parameter(torch.ones(times, len(layers), 2, width))
        self.shift = nn.Parameter(torch.zeros(times, len(layers), 2, width))

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        for iteration in range(self.times):
            for index, layer in enumerate(self.layers):
                x_BTD = functional_call(layer, self.adapted(iteration, index), (x_BTD, shared))
        return x_BTD

    def adapted(self, iteration: int, index: int) -> dict[str, Tensor]:
        """A layer's parameters in one pass."""
        weights: dict[str, Tensor] = {}
        weight: Tensor
        for name, weight in self.layers[index].named_parameters():
            role = 1 if name.startswith("channel.") else 0
            if name.endswith(".norm.weight") and name.count(".") == 2:
                weight = weight * self.gain[iteration, index, role]
            elif name.endswith(".norm.bias") and name.count(".") == 2:
                weight = weight + self.shift[iteration, index, role]
            weights[name] = weight
        return weights

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]

    def step(self, x_BTD: Tensor, state: list[list[Any]],
             shared: Shared | None = None) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, with a state per pass and layer."""
        after = []
        for iteration, states in enumerate(state):
            following = []
            for index, layer in enumerate(self.layers):
                weights = {f"layer.{name}": weight for name, weight in self.adapted(iteration, index).items()}
                x_BTD, new = functional_call(Stepping(layer), weights, (x_BTD, states[index], shared))
                following.append(new)
            after.append(following)
        return x_BTD, after


class Visits(nn.Module):
    """Layers in any order: each round visits one, or several side by side whose outputs are averaged."""

    shares = True

    def __init__(self, layers: list[nn.Module], rounds: tuple[tuple[int, ...], ...]):
        super().__init__()
        self.layers, self.rounds = nn.ModuleList(layers), rounds

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        for visited in self.rounds:
            outputs = [as_sequence(self.layers[index], x_BTD, True, shared) for index in visited]
            x_BTD = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(self.layers[index], batch, dtype, device) for index in visited] for visited in self.rounds]

    def step(self, x_BTD: Tensor, state: list[list[Any]],
             shared: Shared | None = None) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, with a state per round and visit."""
        after = []
        for visited, states in zip(self.rounds, state, strict=True):
            outputs, new = [], []
            for index, before in zip(visited, states, strict=True):
                y_BTD, following = step_part(self.layers[index], x_BTD, before, True, shared)
                outputs.append(y_BTD)
                new.append(following)
            x_BTD = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
            after.append(new)
        return x_BTD, after
