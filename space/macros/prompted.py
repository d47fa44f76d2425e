"""Layers that denoise for a prompt: the model's second input, a row of features for the time before those of the text.

Legend: B batch, S rows of the source, F features, T tokens or places, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from ..operators.checks import require_whole
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import as_sequence

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Prompted", "PromptedLayers"]


class PromptedLayers(nn.Module):
    """Layers that find the text under "memory" and the time under "condition" in what they share."""

    shares = True

    def __init__(self, body: nn.Module, features: int, width: int):
        super().__init__()
        self.empty = nn.Parameter(torch.empty(2, features))
        self.text = nn.Linear(features, width, bias=False)
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.body = body

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        own = {} if shared is None else dict(shared)
        source_BSF = own.pop("source", None)
        if source_BSF is None:
            source_BSF = self.empty.repeat(len(x_BTD), 1, 1)
        own["condition"] = self.time(source_BSF[:, :1])
        own["memory"] = self.text(source_BSF[:, 1:])
        return as_sequence(self.body, x_BTD, True, own)


@dataclass(frozen=True)
class Prompted(Macro):
    """Layers with `CrossAttention` to a text and `AdaNorm` of a time, and what makes both of the model's second input: the
    conditions of latent diffusion (Rombach et al., 2022).

    `model(latents, source)`, source (B, 1 + text, features): its first row are features of the time, such as sinusoids, the
    others those of the text, from an encoder that is not part of the network. The text is projected to the stream's width;
    the time goes through two layers with SiLU between. Without a source two learned rows stand for both: the empty prompt of
    classifier-free guidance (Ho and Salimans, 2021). The embedding is one that lets a source of features pass,
    `LatentEmbedding`. Layers of another width read both through `UShape(carry=("memory", "condition"))`.

    features: of every row. tokens: how long a text its projection is counted for.
    """

    layers: Any
    features: Any = 768
    tokens: Any = 77
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    reads_source: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_prompted.py"
    source: ClassVar[Source] = Source("High-Resolution Image Synthesis with Latent Diffusion Models", 2022)

    def check(self, width: int, where: str) -> None:
        require_whole("features", self.features, where)
        require_whole("tokens", self.tokens, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, inner = axis("width", width), axis("condition", width)
        f, rows = axis("features", self.features), axis("rows", 2)
        return {"empty": param(rows, f, init=Init("normal", gain=0.02)), "text.weight": param(d, f),
                "time.0.weight": param(inner, f), "time.0.bias": param(inner, init="zeros"),
                "time.2.weight": param(d, inner), "time.2.bias": param(d, init="zeros")}

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, length, "body.layers")

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """The text, and the time once."""
        return float(width * self.features * (self.tokens + 1) + width * width)

    def build(self, width: int) -> nn.Module:
        body = Layers(built_layers([entry.item for entry in kept(self.layers)], width))
        return PromptedLayers(body, self.features, width)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "prompt", f"{place}.prompt", self, stream)
        last = draft.items([entry.item for entry in kept(self.layers)], stream, f"{place}.body.layers", width)
        draft.join(begin, last, SKIP)
        return last
