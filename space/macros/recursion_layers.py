"""The modules of the recursions: stacks of layers that run several times, and what happens between the passes.

Legend: B batch, T tokens, K tokens of a pass, D width, N streams.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..model import Shared, Stepping
from .routing import compacted, count_of, gathered, picked, put_back
from .running import as_sequence, initial_state, step_part

__all__ = ["EncodedRounds", "HyperRounds", "NormedRounds", "Projection", "RoutedRounds", "Rounds", "SlicedRounds", "ThinkingRounds",
           "TokenRounds", "Visits"]


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
        weights = {}
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


class Projection(nn.Module):
    """a x + b MLP(LayerNorm(x)): what stands between two passes."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.coefficients = nn.Parameter(torch.ones(2))

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.gelu(self.up(self.norm(x_BTD))))
        return self.coefficients[0] * x_BTD + self.coefficients[1] * y_BTD


class SlicedRounds(nn.Module):
    """In every pass the tokens are sliced into groups that do not see each other; every other pass slices across.

    Passes 0, 2, ... take groups of neighbours, passes 1, 3, ... every G-th token, so that groups exchange what they know. After each layer its change is weighed, after each pass a projection of its own follows.
    """

    def __init__(self, layers: list[nn.Module], groups: tuple[int, ...], width: int, hidden: int):
        super().__init__()
        self.layers, self.groups = nn.ModuleList(layers), groups
        self.coefficients = nn.Parameter(torch.ones(len(layers), 2))
        self.between = nn.ModuleList([Projection(width, hidden) for _ in groups])

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        for iteration, project in enumerate(self.between):
            x_BTD = project(self.sliced(x_BTD, self.groups[iteration], iteration % 2 == 1))
        return x_BTD.view(x.shape)

    def sliced(self, x_BTD: Tensor, groups: int, across: bool) -> Tensor:
        """All layers on every group; the first T mod G groups have one token more than the others."""
        tokens = x_BTD.shape[1]
        places_T = torch.arange(tokens, device=x_BTD.device)
        order_T = torch.argsort(places_T % groups, stable=True) if across else places_T
        x_BTD = x_BTD[:, order_T]
        larger = tokens % groups * (tokens // groups + 1)
        parts = [self.grouped(x_BTD[:, :larger], tokens % groups), self.grouped(x_BTD[:, larger:], groups - tokens % groups)]
        return torch.cat(parts, 1)[:, torch.argsort(order_T)]

    def grouped(self, x_BTD: Tensor, groups: int) -> Tensor:
        """All layers on groups of one size."""
        if x_BTD.shape[1] == 0:
            return x_BTD
        y = x_BTD.reshape(len(x_BTD) * groups, -1, x_BTD.shape[-1])
        for index, layer in enumerate(self.layers):
            y = self.coefficients[index, 0] * y + self.coefficients[index, 1] * (as_sequence(layer, y, True) - y)
        return y.reshape(x_BTD.shape)


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


class RoutedRounds(nn.Module):
    """Every pass takes the tokens with the largest scores among those of the pass before; only they see each other."""

    def __init__(self, layers: list[nn.Module], width: int, capacity: tuple[float, ...], scale: float, adds: str):
        super().__init__()
        self.layers, self.capacity, self.scale, self.adds = nn.ModuleList(layers), capacity, scale, adds
        self.pass_router = nn.Parameter(torch.zeros(len(capacity), width))

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        places_BK = torch.arange(x_BTD.shape[1], device=x.device).expand(x_BTD.shape[:2])
        for iteration, share in enumerate(self.capacity):
            score_BK = F.linear(gathered(x_BTD, places_BK), self.pass_router[iteration:iteration + 1]).squeeze(-1)
            chosen_BK = picked(score_BK, min(score_BK.shape[1], count_of(share, x_BTD.shape[1])))
            places_BK = places_BK.gather(1, chosen_BK)
            before_BKD = y_BKD = gathered(x_BTD, places_BK)
            for layer in self.layers:
                y_BKD = as_sequence(layer, y_BKD, True)
            weight_BK1 = self.scale * torch.sigmoid(score_BK.gather(1, chosen_BK)).unsqueeze(-1)
            if self.adds == "output":
                y_BKD = before_BKD + weight_BK1 * y_BKD
            elif self.adds == "change":
                y_BKD = before_BKD + weight_BK1 * (y_BKD - before_BKD)
            x_BTD = put_back(x_BTD, places_BK, y_BKD)
        return x_BTD.view(x.shape)


class ThinkingRounds(nn.Module):
    """The first pass takes all tokens, every later one those with the largest scores; its change counts by a vector."""

    def __init__(self, layers: list[nn.Module], width: int, times: int, capacity: float):
        super().__init__()
        self.layers, self.capacity = nn.ModuleList(layers), capacity
        self.think_router = nn.Parameter(torch.zeros(times - 1, width))
        self.think_encoding = nn.Parameter(torch.ones(times, width))

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        x_BTD = x_BTD + self.think_encoding[0] * self.change(x_BTD)
        for iteration, router_D in enumerate(self.think_router, 1):
            score_BT = F.linear(x_BTD, router_D.unsqueeze(0)).squeeze(-1)
            places_BK = picked(score_BT, count_of(self.capacity, x_BTD.shape[1]))
            before_BKD = gathered(x_BTD, places_BK)
            weight_BK1 = torch.sigmoid(score_BT.gather(1, places_BK)).unsqueeze(-1)
            y_BKD = before_BKD + weight_BK1 * self.think_encoding[iteration] * self.change(before_BKD)
            x_BTD = put_back(x_BTD, places_BK, y_BKD)
        return x_BTD.view(x.shape)

    def change(self, x_BTD: Tensor) -> Tensor:
        """What the layers add to these tokens."""
        y_BTD = x_BTD
        for layer in self.layers:
            y_BTD = as_sequence(layer, y_BTD, True)
        return y_BTD - x_BTD


class TokenRounds(nn.Module):
    """Every token chooses its number of passes once, at the start; a pass is over those that have not finished.

    Tokens of one sequence part company with those of another, so decoding keeps a state per sequence, pass and layer.
    """

    def __init__(self, layers: list[nn.Module], width: int, times: int):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times
        self.router = nn.Linear(width, times, bias=False)

    def chosen(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The last pass of every token, and how likely that was."""
        weight_BT, last_BT = torch.softmax(self.router(x_BTD), -1).max(-1)
        return last_BT, weight_BT.unsqueeze(-1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        last_BT, weight_BT1 = self.chosen(x_BTD)
        for iteration in range(self.times):
            places_BK, keep_BK = compacted(last_BT >= iteration)
            if places_BK.shape[1]:
                before_BKD = y_BKD = gathered(x_BTD, places_BK)
                for layer in self.layers:
                    y_BKD = as_sequence(layer, y_BKD, True)
                y_BKD = before_BKD + gathered(weight_BT1, places_BK) * (y_BKD - before_BKD)
                x_BTD = put_back(x_BTD, places_BK, torch.where(keep_BK.unsqueeze(-1), y_BKD, before_BKD))
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[list[Any]]]:
        return [[[initial_state(layer, 1, dtype, device) for layer in self.layers] for _ in range(self.times)]
                for _ in range(batch)]

    def step(self, x_BTD: Tensor, state: list[list[list[Any]]]) -> tuple[Tensor, list[list[list[Any]]]]:
        """The next tokens, sequence by sequence."""
        last_BT, weight_BT1 = self.chosen(x_BTD)
        rows, after = [], []
        for row, states in enumerate(state):
            y_TD, new = self.step_row(x_BTD[row], states, last_BT[row], weight_BT1[row])
            rows.append(y_TD)
            after.append(new)
        return torch.stack(rows), after

    def step_row(self, x_TD: Tensor, state: list[list[Any]], last_T: Tensor,
                 weight_T1: Tensor) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens of one sequence; a pass that none of them reaches leaves its state as it was."""
        after = []
        for iteration, states in enumerate(state):
            places_K = (last_T >= iteration).nonzero().squeeze(-1)
            new = list(states)
            if len(places_K):
                before_KD = x_TD[places_K]
                y_1KD = before_KD.unsqueeze(0)
                for index, layer in enumerate(self.layers):
                    y_1KD, new[index] = step_part(layer, y_1KD, states[index], True)
                y_KD = before_KD + weight_T1[places_K] * (y_1KD.squeeze(0) - before_KD)
                x_TD = x_TD.index_copy(0, places_K, y_KD)
            after.append(new)
        return x_TD, after
