"""Layers over chunks of the sequence, between layers over its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..axes import Param
from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from .base import Macro, Numbers, Part, Visit, kept
from .chunking import Chunker
from .dynamic_chunks import DynamicChunks
from .looped import stream_parts

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Hierarchy"]


@dataclass(frozen=True)
class Hierarchy(Macro):
    """Encoder, inner layers over one vector per chunk, decoder.

    chunker: where chunks begin and what becomes of them, `DynamicChunks(ratio)` as in H-Net, `FixedChunks(block, prefix)`
    as in Block Transformer, `WordChunks(ratio)` at marked tokens, or a choice of them. encoder, decoder: layers at the
    stream's width. inner: layers, which may hold another `Hierarchy` for a further stage. width: of the inner layers; None
    keeps the stream's. All layers keep the width and the length of what reaches them, and get nothing of what an outer
    stream shares.
    """

    inner: Any
    encoder: Any = ()
    decoder: Any = ()
    chunker: Any = field(default_factory=DynamicChunks)
    width: Any = None
    holds: ClassVar[tuple[str, ...]] = ("encoder", "inner", "decoder")
    streams: ClassVar[tuple[str, ...]] = ("encoder", "inner", "decoder")
    proof: ClassVar[str] = "tests/space/test_hierarchy.py"
    source: ClassVar[Source] = Source(DynamicChunks.source.paper, 2025)

    @property
    def fixed(self) -> Mapping[str, str]:                                            # type: ignore[override]
        return self.chunker.fixed                                                    # type: ignore[no-any-return]

    @property
    def couples(self) -> frozenset[str]:                                             # type: ignore[override]
        return frozenset({"width"} if self.chunker.begins_inside and self.width is not None else ())

    def inside(self) -> list[Any]:
        """Without an encoder that works on whole chunks, which may look both ways."""
        fields = ("encoder", "inner", "decoder") if self.chunker.encodes_tokens else ("inner", "decoder")
        return [entry.item for name in fields for entry in kept(getattr(self, name))]

    def check(self, width: int, where: str) -> None:
        if not isinstance(self.chunker, Chunker):
            raise TypeError(f"chunker is a way to cut the sequence, such as DynamicChunks() or FixedChunks(4), at {where}: "
                            f"got {self.chunker!r}")
        if self.width is not None and (isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1):
            raise ValueError(f"width is a positive int, or None to keep it, at {where}: got {self.width!r}")
        self.chunker.check(width, self.width or width, f"{where}.chunker")

    def axes(self, width: int) -> dict[str, Param]:
        return self.chunker.axes(width, self.width or width)                         # type: ignore[no-any-return]

    def parts(self, width: int, length: Length) -> list[Part]:
        found, tokens = [], tokens_of(length)
        for name, inner in (("encoder", width), ("inner", self.width or width), ("decoder", width)):
            runs, decodes = self.chunker.runs(name, tokens), name != "encoder" or self.chunker.encodes_tokens
            found += [part._replace(runs=runs, decodes=decodes)
                      for part in stream_parts(getattr(self, name), name, inner, tokens, f"{name}.layers")]
        return found

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        for name, inner in (("encoder", width), ("inner", self.width or width), ("decoder", width)):
            for entry in kept(getattr(self, name)):
                if entry.item is not None and entry.item.out(inner, 12) != (inner, 12):
                    raise ValueError(f"layers of a hierarchy keep width and length: got {type(entry.item).__name__} as "
                                     f"{name}[{entry.index}], which does not; nest a Hierarchy for a further stage")
        return width, length

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return self.chunker.macs(width, self.width or width, tokens_of(length))       # type: ignore[no-any-return]

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return self.chunker.decode_macs(width, self.width or width)                   # type: ignore[no-any-return]

    def state_numel(self, width: int, length: Length) -> int:                        # type: ignore[override]
        return self.chunker.state_numel(width, self.width or width, tokens_of(length))  # type: ignore[no-any-return]

    def build(self, width: int) -> nn.Module:
        inner = self.width or width
        encoder, within, decoder = (
            Layers(built_layers([entry.item for entry in kept(held)], at_width))
            for held, at_width in ((self.encoder, width), (self.inner, inner), (self.decoder, width)))
        ahead = not all(entry.item.causal for entry in kept(self.inner))
        return self.chunker.build(encoder, within, decoder, width, inner, ahead)      # type: ignore[no-any-return]

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        inner = self.width or width
        stream = draft.items([entry.item for entry in kept(self.encoder)], stream, f"{place}.encoder.layers", width)
        draft.width = inner
        below = draft.node(self.label(), "chunk", place, self, stream)
        below = draft.items([entry.item for entry in kept(self.inner)], below, f"{place}.inner.layers", inner)
        draft.width = width
        above = draft.node("dechunk", "dechunk", "", None, below)
        draft.join(stream, above, SKIP)
        return draft.items([entry.item for entry in kept(self.decoder)], above, f"{place}.decoder.layers", width)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        own = numbers("width")
        visit("encoder", widths)
        visit("inner", frozenset(w for w in own if w is not None) | (widths if None in own else frozenset()))
        visit("decoder", widths)
        return widths
