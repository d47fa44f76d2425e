"""Layers that read what other layers made of the source.

Legend: B batch, T tokens of the target, S tokens of the source, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from ..operators.cross_attention import check_memory
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["EncoderDecoder", "EncoderDecoderLayers"]


class EncoderDecoderLayers(nn.Module):
    """The decoder's parts find the encoder's output under `memory` in what they share.

    Decoding token by token, the source comes with the first step alone: what reads the memory keeps what it needs of it.
    """

    shares = True

    def __init__(self, encoder: nn.Module, decoder: nn.Module, memory: str = "memory"):
        super().__init__()
        self.memory = memory
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        source_BSD = x_BTD if shared is None else shared.get("source", x_BTD)
        memory_BSD = self.encoder(source_BSD)
        return self.decoder(x_BTD, {**(shared or {}), self.memory: memory_BSD})        # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        return initial_state(self.decoder, batch, dtype, device)

    def step(self, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        """The next tokens through the decoder, whose state it is."""
        own = dict(shared or {})
        if "source" in own:
            own[self.memory] = self.encoder(own["source"])
        return step_part(self.decoder, x_BTD, state, True, own)


@dataclass(frozen=True)
class EncoderDecoder(Macro):
    """Attention Is All You Need (Vaswani et al., 2017): an encoder of the source, a decoder that reads it.

    encoder, decoder: layers of one width. The decoder's `CrossAttention` reads the encoder's output, so a decoder layer
    is `Block(mixer=Attention())` followed by `Block(mixer=CrossAttention(), channel=...)`. The source is the model's second
    input, `model(ids, source)`; without one the encoder reads the input itself. It is causal, and streams, where the
    decoder does: a token of the target depends on those before it and on the whole source. To decode token by token is
    `model.init_state(batch, source=ids)`; the encoder runs once, and every `CrossAttention` keeps keys and values of the
    memory. Costs take the source to be as long as the target.

    memory: what the encoder's output is called. A second encoder in the decoder hides the first one's output unless it has
    another name, which a `CrossAttention(memory=...)` reads: a layer may then read both in turn.
    """

    encoder: Any
    decoder: Any
    memory: Any = "memory"
    holds: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    streams: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    reads_source: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Attention Is All You Need", 2017)

    def check(self, width: int, where: str) -> None:
        check_memory(self.memory, where)

    def inside(self) -> list[Any]:
        return [entry.item for entry in kept(self.decoder)]

    def parts(self, width: int, length: Length) -> list[Part]:
        encoder = stream_parts(self.encoder, "encoder", width, length, "encoder.layers")
        return ([part._replace(decodes=False) for part in encoder]
                + stream_parts(self.decoder, "decoder", width, length, "decoder.layers"))

    def build(self, width: int) -> nn.Module:
        encoder, decoder = (Layers(built_layers([entry.item for entry in kept(held)], width))
                            for held in (self.encoder, self.decoder))
        return EncoderDecoderLayers(encoder, decoder, self.memory)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        encoded = draft.items([entry.item for entry in kept(self.encoder)], stream, f"{place}.encoder.layers", width)
        label = "decoder" if self.memory == "memory" else f"decoder({self.memory})"
        begin = draft.node(label, "decoder", place, self, stream)
        draft.join(encoded, begin, SKIP)
        return draft.items([entry.item for entry in kept(self.decoder)], begin, f"{place}.decoder.layers", width)
