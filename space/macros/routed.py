"""Layers that some tokens pass by.

Legend: B batch, T tokens, K chosen tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..graph import RESIDUAL
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from .base import Macro, Part, kept
from .looped import stream_parts
from .routing import best_of_frames, compacted, count_of, gathered, picked, put_back
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["FrameRoutedLayers", "Routed", "RoutedLayers"]

WITHIN = ("sequence", "frame")
CHOICES, WEIGHTS = ("top_k", "threshold"), ("linear", "tanh", "sigmoid", "through", "none")


class WeighedLayers(nn.Module):
    """Layers for some tokens, a score for every token, and how much of what they add goes into the stream."""

    def __init__(self, layers: list[nn.Module], width: int, capacity: float, weight: str, scale: float, ahead: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.capacity, self.weight, self.scale, self.ahead = capacity, weight, scale, ahead
        self.router = nn.Linear(width, 1, bias=False)

    def weighed(self, before_BKD: Tensor, y_BKD: Tensor, score_BK: Tensor) -> Tensor:
        """The stream of chosen tokens, what the layers add to it weighed by the score."""
        if self.weight == "none":
            return y_BKD
        if self.weight == "linear":
            weight_BK = score_BK
        elif self.weight == "tanh":
            weight_BK = self.scale * torch.tanh(score_BK)
        elif self.weight == "sigmoid":
            weight_BK = torch.sigmoid(score_BK)
        else:
            open_BK = torch.sigmoid(score_BK)                    # one, with the gradient of the sigmoid
            weight_BK = 1 + (open_BK - open_BK.detach())
        return before_BKD + weight_BK.unsqueeze(-1) * (y_BKD - before_BKD)


class RoutedLayers(WeighedLayers):
    """x + r (layers(x) - x) for chosen tokens, x for the others; the layers see the chosen ones alone.

    Decoding, tokens of one sequence part company with those of another: there is a state per sequence and layer, which a
    token that passes by leaves as it was. ahead: the layers are not causal, so above a threshold every sequence is worked on
    alone, with nothing to fill it up.
    """

    def __init__(self, layers: list[nn.Module], width: int, capacity: float, choose: str, weight: str, scale: float,
                 ahead: bool = False):
        super().__init__(layers, width, capacity, weight, scale, ahead)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        if self.ahead and len(x) > 1:
            return torch.cat([self(row) for row in torch.split(x, 1)])
        x_BTD = x.flatten(1, -2)
        score_BT = self.router(x_BTD).squeeze(-1)
        if self.choose == "threshold":
            places_BK, keep_BK = compacted(score_BT > 0)
            if places_BK.shape[1] == 0:
                return x
        else:
            places_BK = picked(score_BT, count_of(self.capacity, x_BTD.shape[1]))
        before_BKD = gathered(x_BTD, places_BK)
        y_BKD = before_BKD
        for layer in self.layers:
            y_BKD = as_sequence(layer, y_BKD, True)
        y_BKD = self.weighed(before_BKD, y_BKD, score_BT.gather(1, places_BK))
        if self.choose == "threshold":
            y_BKD = torch.where(keep_BK.unsqueeze(-1), y_BKD, before_BKD)
        return put_back(x_BTD, places_BK, y_BKD).view(x.shape)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[list[Any]]:
        return [[initial_state(layer, 1, dtype, device) for layer in self.layers] for _ in range(batch)]

    def step(self, x_BTD: Tensor, state: list[list[Any]]) -> tuple[Tensor, list[list[Any]]]:
        """The next tokens, sequence by sequence; only those above the threshold go through the layers."""
        score_BT = self.router(x_BTD).squeeze(-1)
        rows, after = [], []
        for row, states in enumerate(state):
            places_K = (score_BT[row] > 0).nonzero().squeeze(-1)
            x_TD, new = x_BTD[row], list(states)
            if len(places_K):
                before_1KD = x_TD[places_K].unsqueeze(0)
                y_1KD = before_1KD
                for index, layer in enumerate(self.layers):
                    y_1KD, new[index] = step_part(layer, y_1KD, states[index], True)
                y_1KD = self.weighed(before_1KD, y_1KD, score_BT[row][places_K].unsqueeze(0))
                x_TD = x_TD.index_copy(0, places_K, y_1KD.squeeze(0))
            rows.append(x_TD)
            after.append(new)
        return torch.stack(rows), after


class FrameRoutedLayers(WeighedLayers):
    """Of every frame the tokens with the largest scores go through the layers; tokens of no frame always do, unweighed.

    ahead: as above a threshold.
    """

    shares = True

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        if shared is None or "frames" not in shared:
            raise ValueError("a route within frames reads which tokens are of which: got none; put it into Framed(layers)")
        frames_BT = shared["frames"]
        if self.ahead and len(x_BTD) > 1:
            rows = zip(torch.split(x_BTD, 1), torch.split(frames_BT, 1), strict=True)
            return torch.cat([self._routed(row_1TD, row_1T) for row_1TD, row_1T in rows])
        return self._routed(x_BTD, frames_BT)

    def _routed(self, x_BTD: Tensor, frames_BT: Tensor) -> Tensor:
        score_BT = self.router(x_BTD).squeeze(-1)
        places_BK, keep_BK = compacted(best_of_frames(score_BT, frames_BT, self.capacity))
        before_BKD = gathered(x_BTD, places_BK)
        y_BKD = before_BKD
        for layer in self.layers:
            y_BKD = as_sequence(layer, y_BKD, True)
        weighed_BKD = self.weighed(before_BKD, y_BKD, score_BT.gather(1, places_BK))
        y_BKD = torch.where((frames_BT.gather(1, places_BK) == 0).unsqueeze(-1), y_BKD, weighed_BKD)
        y_BKD = torch.where(keep_BK.unsqueeze(-1), y_BKD, before_BKD)
        return put_back(x_BTD, places_BK, y_BKD)


@dataclass(frozen=True)
class Routed(Macro):
    """Mixture-of-Depths (Raposo et al., 2024): a share of the tokens goes through these layers, the others pass by.

    layers: usually one block; a block with a mixer alone routes attention, as MindSkip does. capacity: the share of tokens.
    choose: "top_k", those with the largest scores of the sequence, which looks ahead: it is not causal and does not
    stream; "threshold", those whose score is above zero, causal and decoding, with the same weights: train with "top_k" and
    `bp.routing_loss`, which moves the scores of chosen tokens above zero and the others below, then decode with
    "threshold". weight: what the layers add is multiplied by the score ("linear"), by `scale * tanh(score)` (p-MoD), by its
    sigmoid, by one with the sigmoid's gradient ("through", Router-Tuning), or by nothing ("none").

    within: what the share is of: "sequence"; or "frame", VideoLLM-MoD (Wu et al., 2024): a share of the tokens of every
    frame, by "top_k", while all tokens of no frame, those of the text, go through unweighed; `Framed(layers)` around says
    which are which. A token then depends on its whole frame and, where the layers are causal, on nothing after it.

    Chosen tokens stand at their places among themselves. Costs take `capacity` of the tokens, as if there were no text;
    `bp.measured_macs` counts what ran. Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    capacity: Any = 0.125
    choose: Any = "top_k"
    weight: Any = "linear"
    scale: Any = 0.2
    within: Any = "sequence"
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_depth.py -k Routed"
    source: ClassVar[Source] = Source("Mixture-of-Depths: Dynamically allocating compute in transformer-based language "
                                      "models", 2024, systems=("S059", "S077"), options=("S104",))

    def check(self, width: int, where: str) -> None:
        if not 0 < self.capacity <= 1:
            raise ValueError(f"capacity is a share of the tokens above 0 and up to 1 at {where}: got {self.capacity}")
        for name, value, allowed in (("choose", self.choose, CHOICES), ("weight", self.weight, WEIGHTS),
                                     ("within", self.within, WITHIN)):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)} at {where}: got {value!r}")
        if self.within == "frame" and self.choose != "top_k":
            raise ValueError(f"the share of a frame is chosen by top_k at {where}: got choose={self.choose!r}; leave it "
                             "out, or use within='sequence'")

    @property
    def reads_shared(self) -> bool:                                                  # type: ignore[override]
        return bool(self.within == "frame")

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(self.choose == "threshold" and super().causal)

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return bool(self.choose == "threshold" and super().streaming)

    def axes(self, width: int) -> dict[str, Param]:
        return {"router.weight": param(axis("score", 1), axis("width", width))}

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(width * tokens_of(length))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float(width)

    def parts(self, width: int, length: Length) -> list[Part]:
        count = count_of(self.capacity, tokens_of(length))
        inside = stream_parts(self.layers, "layers", width, length)
        return [part._replace(passes=((count, self.capacity),)) for part in inside]

    def build(self, width: int) -> nn.Module:
        layers = built_layers([entry.item for entry in kept(self.layers)], width)
        if self.within == "frame":
            return FrameRoutedLayers(layers, width, self.capacity, self.weight, self.scale, not super().causal)
        ahead = self.choose == "threshold" and not super().causal
        return RoutedLayers(layers, width, self.capacity, self.choose, self.weight, self.scale, ahead)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "route", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.layers", width)
        total = draft.node("sum", "sum", "", None, end)
        draft.join(stream, total, RESIDUAL)
        return total
