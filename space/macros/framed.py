"""Layers that are told which tokens are of which frame.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from ..operators.checks import require_whole
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import as_sequence

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Framed", "FramedLayers", "frames_of"]


def frames_of(marked_BT: Tensor, tokens: int) -> Tensor:
    """The number of every token's frame, from 1 on, and 0 of those without a mark.

    A frame is as many marked tokens as `tokens`, one after the other; the last of a run may be shorter.
    """
    places_T = torch.arange(marked_BT.shape[1], device=marked_BT.device)
    last_BT = torch.cummax(torch.where(marked_BT, -1, places_T), dim=-1).values          # the last token without a mark
    starts_BT = marked_BT & ((places_T - last_BT - 1) % tokens == 0)
    return starts_BT.cumsum(-1) * marked_BT


class FramedLayers(nn.Module):
    """Layers that find the numbers of frames under "frames" in what they share."""

    shares = True

    def __init__(self, body: nn.Module, tokens: int):
        super().__init__()
        self.tokens, self.body = tokens, body

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        own = {} if shared is None else dict(shared)
        own["frames"] = frames_of(x_BTD[..., 0] > 0.5, self.tokens)
        return as_sequence(self.body, x_BTD, True, own)


@dataclass(frozen=True)
class Framed(Macro):
    """Layers with `Routed(within="frame")`: the tokens of a video and of text in one stream (VideoLLM-MoD, Wu et al., 2024).

    The stream that reaches it has a mark, 1 or 0, as its first entry: a token of a frame. `MarkedEmbedding(vocab, marks)`
    sees to that where frames come as ids, so it stands first in the body; the encoder of the frames is not part of the
    network. tokens: of a frame; marked tokens that follow one another are cut into frames of so many, and text between starts
    a new one. Takes sequences.
    """

    layers: Any
    tokens: Any = 10
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_framed.py"
    source: ClassVar[Source] = Source("VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision "
                                      "Computation", 2024, systems=("S112",))

    def check(self, width: int, where: str) -> None:
        require_whole("tokens", self.tokens, where)

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, length, "body.layers")

    def build(self, width: int) -> nn.Module:
        return FramedLayers(Layers(built_layers([entry.item for entry in kept(self.layers)], width)), self.tokens)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "frames", place, self, stream)
        last = draft.items([entry.item for entry in kept(self.layers)], stream, f"{place}.body.layers", width)
        draft.join(begin, last, SKIP)
        return last
