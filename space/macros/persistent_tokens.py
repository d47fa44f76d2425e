"""Learned tokens before the sequence, for the layers inside.

Legend: B batch, T tokens, N persistent tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import initial_state

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["PersistentLayers", "PersistentTokens"]


class PersistentLayers(nn.Module):
    """The layers over [learned tokens, stream]; what they make of the learned tokens is left out. Decoding begins behind
    these."""

    def __init__(self, layers: nn.Module, width: int, tokens: int):
        super().__init__()
        self.body: Any = layers
        self.persistent = nn.Parameter(torch.empty(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        before_BND = self.persistent.repeat(len(x_BTD), 1, 1)
        return self.body(torch.cat([before_BND, x_BTD], 1))[:, before_BND.shape[1]:].view(x.shape)  # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        before_BND = self.persistent.to(dtype).repeat(batch, 1, 1)
        return self.body.step(before_BND, initial_state(self.body, batch, dtype, device))[1]

    def step(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.body.step(x_BTD, state)                                          # type: ignore[no-any-return]


@dataclass(frozen=True)
class PersistentTokens(Macro):
    """Learned tokens at the beginning of the sequence that all layers inside see (persistent memory, as in Titans).

    layers: keep width and length, and get nothing of what an outer stream shares. tokens: how many. With a `NeuralMemory`
    and, in the next block, attention in a window this is the paper's memory as a layer (MAL):
    `PersistentTokens((Block(mixer=NeuralMemory()), Block(mixer=Attention(window=64), channel=SwiGLU())))`. The stream
    leaves without the learned tokens, which begin anew in a next macro.
    """

    layers: Any
    tokens: Any = 4
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    proof: ClassVar[str] = "tests/space/test_titans.py"
    source: ClassVar[Source] = Source("Titans: Learning to Memorize at Test Time", 2025, options=("S394",))

    def check(self, width: int, where: str) -> None:
        require_whole("tokens", self.tokens, where)

    def axes(self, width: int) -> dict[str, Param]:
        return {"persistent": param(axis("persistent", self.tokens), axis("width", width), init=Init("normal", gain=0.02))}

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, self.tokens + tokens_of(length), "body.layers")

    def build(self, width: int) -> nn.Module:
        layers = Layers(built_layers([entry.item for entry in kept(self.layers)], width))
        return PersistentLayers(layers, width, self.tokens)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "persistent", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.body.layers", width)
        return draft.node("persistent end", "persistent", "", None, end)
