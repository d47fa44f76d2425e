"""Layers that read a condition, taken from the first token of their stream.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Conditioned", "ConditionedLayers"]


class ConditionedLayers(nn.Module):
    """Layers that find a condition under "condition" in what they share: a map of the first token of the stream."""

    shares = True

    def __init__(self, body: nn.Module, width: int):
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.body = body

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        first_B1D = x_BTD[:, :1] if x_BTD.ndim == 3 else x_BTD[:, 0, :1]
        own = {} if shared is None else dict(shared)
        own["condition"] = self.condition(first_B1D)
        return as_sequence(self.body, x_BTD, True, own)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {"condition": None, "body": initial_state(self.body, batch, dtype, device)}

    def step(self, x_BTD: Tensor, state: dict[str, Any],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens; the condition of the first one is kept."""
        condition_B1D = state["condition"]
        if condition_B1D is None:
            condition_B1D = self.condition(x_BTD[:, :1])
        own = {} if shared is None else dict(shared)
        own["condition"] = condition_B1D
        x_BTD, body = step_part(self.body, x_BTD, state["body"], True, own)
        return x_BTD, {"condition": condition_B1D, "body": body}


@dataclass(frozen=True)
class Conditioned(Macro):
    """Layers with `AdaNorm`, `AdaGate` or `TimeDependentNorm`, and the condition they read (DiT, Peebles and Xie, 2022).

    The condition, a class or a time, is the first token of the stream, as an embedding of it; a two-layer map with SiLU
    between makes of it what norms and gates read. On a grid it is the first position.
    """

    layers: Any
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    source: ClassVar[Source] = Source("Scalable Diffusion Models with Transformers", 2022, options=("S046",))

    def axes(self, width: int) -> dict[str, Param]:
        d, inner = axis("width", width), axis("condition", width)
        return {"condition.0.weight": param(inner, d), "condition.0.bias": param(inner, init="zeros"),
                "condition.2.weight": param(d, inner), "condition.2.bias": param(d, init="zeros")}

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, length, "body.layers")

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Once per sequence."""
        return 2.0 * width * width

    def state_numel(self, width: int, length: int) -> int:
        return width if length else 0

    def build(self, width: int) -> nn.Module:
        return ConditionedLayers(Layers(built_layers([entry.item for entry in kept(self.layers)], width)), width)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "condition", f"{place}.condition", self, stream)
        last = draft.items([entry.item for entry in kept(self.layers)], stream, f"{place}.body.layers", width)
        draft.join(begin, last, SKIP)
        return last
