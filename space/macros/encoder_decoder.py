"""Layers that read what other layers made of the source.

Legend: B batch, T tokens of the target, S tokens of the source, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from .base import Macro, Part, kept
from .looped import stream_parts

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["EncoderDecoder", "EncoderDecoderLayers"]


class EncoderDecoderLayers(nn.Module):
    """The decoder's parts find the encoder's output under "memory" in what they share."""

    shares = True

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        source_BSD = x_BTD if shared is None else shared.get("source", x_BTD)
        memory_BSD = self.encoder(source_BSD)
        return self.decoder(x_BTD, {**(shared or {}), "memory": memory_BSD})          # type: ignore[no-any-return]


@dataclass(frozen=True)
class EncoderDecoder(Macro):
    """Attention Is All You Need (Vaswani et al., 2017): an encoder of the source, a decoder that reads it.

    encoder, decoder: layers of one width. The decoder's `CrossAttention` reads the encoder's output, so a decoder layer
    is `Block(mixer=Attention())` followed by `Block(mixer=CrossAttention(), channel=...)`. The source is the model's second
    input, `model(ids, source)`; without one the encoder reads the input itself. Costs take the source to be as long as
    the target. Decoding token by token would need a state of the memory, which it does not keep: streaming is False.
    """

    encoder: Any
    decoder: Any
    holds: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    streams: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Attention Is All You Need", 2017)

    def parts(self, width: int, length: Length) -> list[Part]:
        return (stream_parts(self.encoder, "encoder", width, length, "encoder.layers")
                + stream_parts(self.decoder, "decoder", width, length, "decoder.layers"))

    def build(self, width: int) -> nn.Module:
        stacks = [Layers(built_layers([entry.item for entry in kept(held)], width)) for held in (self.encoder, self.decoder)]
        return EncoderDecoderLayers(*stacks)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        encoded = draft.items([entry.item for entry in kept(self.encoder)], stream, f"{place}.encoder.layers", width)
        begin = draft.node("decoder", "decoder", place, self, stream)
        draft.join(encoded, begin, SKIP)
        return draft.items([entry.item for entry in kept(self.decoder)], begin, f"{place}.decoder.layers", width)
