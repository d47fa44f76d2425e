"""Part of a body that runs several times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..model import Layers, built_layers, built_lora
from ..operator import Length, Source
from ..plan import Once
from .base import Macro, Part, at, kept

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Looped", "stream_parts"]


@dataclass(frozen=True)
class Looped(Macro):
    """Layers inside a body that run as often as `recursion` says, with the same weights.

    layers: blocks and macros that keep the width. recursion: `Once()`, `Loop(times, lora_rank)` or a choice of them.
    `body=(begin, Looped(middle, Loop(times=3)), end)` is a looped middle between layers that run once (Mixture-of-
    Recursions' middle-cycle, Bae et al., 2025; Relaxed Recursive Transformers, Bae et al., 2024).
    """

    layers: Any
    recursion: Any = field(default_factory=Once)
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
                                      2024)

    def check(self, width: int, where: str) -> None:
        if hasattr(self.recursion, "check"):
            self.recursion.check(f"{where}.recursion")
        elif not isinstance(self.recursion, Once):
            raise TypeError(f"recursion must be Once() or Loop(...) at {where}: got {self.recursion!r}")

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, length)

    def build(self, width: int) -> nn.Module:
        items = [entry.item for entry in kept(self.layers)]
        return Layers(built_layers(items, width), self.recursion.times, built_lora(items, width, self.recursion))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        items = tuple(entry.item for entry in kept(self.layers))
        return draft.looped(self.recursion, stream, items, f"{place}.layers", width)


def stream_parts(held: Any, field_name: str, width: int, length: Length, name: str = "") -> list[Part]:
    """The items of a field that follow one another in a stream."""
    found = []
    for position, entry in enumerate(kept(held)):
        found.append(Part(f"{name or field_name}.{position}", entry.item, at(field_name, held, entry.index), width, length))
        if entry.item is not None:
            width, length = entry.item.out(width, length)
    return found
