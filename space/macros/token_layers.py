"""The modules of the recursions in which a pass works on some of the tokens, or on groups of them.

Legend: B batch, T tokens, K tokens of a pass, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routing import compacted, count_of, gathered, picked, put_back
from .running import as_sequence, initial_state, step_part

__all__ = ["Projection", "RoutedRounds", "SlicedRounds", "ThinkingRounds", "TokenRounds"]


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
            before_BKD = gathered(x_BTD, places_BK)
            y_BKD = before_BKD
            for layer in self.layers:
                y_BKD = as_sequence(layer, y_BKD, True)
            y_BKD = self.weighed(before_BKD, y_BKD, score_BK.gather(1, chosen_BK))
            x_BTD = put_back(x_BTD, places_BK, y_BKD)
        return x_BTD.view(x.shape)

    def weighed(self, before_BKD: Tensor, y_BKD: Tensor, score_BK: Tensor) -> Tensor:
        """The stream of the chosen tokens, with what the layers made of it."""
        if self.adds == "whole":
            return y_BKD
        weight_BK1 = self.scale * torch.sigmoid(score_BK).unsqueeze(-1)
        return before_BKD + weight_BK1 * (y_BKD if self.adds == "output" else y_BKD - before_BKD)


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
    ahead: the layers are not causal, so every sequence is worked on alone, with nothing to fill it up.
    """

    def __init__(self, layers: list[nn.Module], width: int, times: int, ahead: bool = False):
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times
        self.ahead = ahead
        self.router = nn.Linear(width, times, bias=False)

    def chosen(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The last pass of every token, and how likely that was."""
        weight_BT, last_BT = torch.softmax(self.router(x_BTD), -1).max(-1)
        return last_BT, weight_BT.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        if self.ahead and len(x) > 1:
            return torch.cat([self(row) for row in torch.split(x, 1)])
        x_BTD = x.flatten(1, -2)
        last_BT, weight_BT1 = self.chosen(x_BTD)
        for iteration in range(self.times):
            places_BK, keep_BK = compacted(last_BT >= iteration)
            if places_BK.shape[1]:
                before_BKD = y_BKD = gathered(x_BTD, places_BK)
                for layer in self.layers:
                    y_BKD = as_sequence(layer, y_BKD, True)
                y_BKD = before_BKD + gathered(weight_BT1, places_BK) * (y_BKD - before_BKD)
                x_BTD = put_back(x_BTD, places_BK, torch.where(keep_BK.unsqueeze(-1), y_BKD, before_BKD))
        return x_BTD.view(x.shape)

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

    Passes 0, 2, ... take groups of neighbours, passes 1, 3, ... every G-th token, so that groups exchange what they know.
    After each layer its change is weighed, after each pass a projection of its own follows.
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
