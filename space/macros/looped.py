"""Part of a body that runs several times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..axes import Param
from ..graph import LOOP, operator_label
from ..model import Layers, built_layers, built_lora
from ..operator import Length, Source
from ..plan import Once
from .base import Macro, Part, at, kept
from .recursion import Recursion, VisitOrder

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Looped", "stream_parts"]


@dataclass(frozen=True)
class Looped(Macro):
    """Layers inside a body that run as often as `recursion` says, with the same weights.

    layers: blocks and macros that keep the width. recursion: `Once()`, `Loop(times, lora_rank)`, a `Recursion` such as
    `HyperLoop(times, rate)`, `RoutedLoop(capacity)` or `VisitOrder(reuse)`, or a choice of them.
    `body=(begin, Looped(middle, Loop(times=3)), end)` is a looped middle between layers that run once: AlgoFormer (Gao et
    al., 2024), whose number of iterations is the module's `times`, also after training; Mixture-of-Recursions'
    middle-cycle (Bae et al., 2025); Relaxed Recursive Transformers (Bae et al., 2024).
    """

    layers: Any
    recursion: Any = field(default_factory=Once)
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_depth.py -k AlgoFormer"
    source: ClassVar[Source] = Source("On the Expressive Power of a Variant of the Looped Transformer", 2024,
                                      systems=("S423",))

    def check(self, width: int, where: str) -> None:
        if hasattr(self.recursion, "check"):
            self.recursion.check(f"{where}.recursion")
        elif not isinstance(self.recursion, Once):
            raise TypeError(f"recursion must be Once(), Loop(...) or another Recursion at {where}: got {self.recursion!r}")

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(super().causal and getattr(self.recursion, "causal", True))

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return bool(super().streaming and getattr(self.recursion, "streaming", True))

    def around(self) -> Recursion | None:
        """The recursion of the layers that are there, where it has a module of its own."""
        if not isinstance(self.recursion, Recursion):
            return None
        found = self.recursion.on([entry.index for entry in kept(self.layers)])
        return None if found.is_plain or not kept(self.layers) else found

    def axes(self, width: int) -> dict[str, Param]:
        around = self.around()
        return {} if around is None else around.axes(width, len(kept(self.layers)))

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        around = self.around()
        return 0.0 if around is None else around.macs(width, length)

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        around = self.around()
        return 0.0 if around is None else around.macs_per_token(width)

    def parts(self, width: int, length: Length) -> list[Part]:
        found, around = stream_parts(self.layers, "layers", width, length), self.around()
        if around is None:
            return found
        return [part._replace(passes=around.passes(index, part.length)) for index, part in enumerate(found)]

    def build(self, width: int) -> nn.Module:
        items, around = [entry.item for entry in kept(self.layers)], self.around()
        if around is not None:
            return around.build(built_layers(items, width), width, not super().causal)
        if isinstance(self.recursion, Recursion):
            return Layers(built_layers(items, width))
        return Layers(built_layers(items, width), self.recursion.times, built_lora(items, width, self.recursion))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        items = tuple(entry.item for entry in kept(self.layers))
        recursion = self.around() or (Once() if isinstance(self.recursion, Recursion) else self.recursion)
        if not (isinstance(recursion, VisitOrder) and (recursion.side_by_side or recursion.order is not None)):
            return draft.looped(recursion, stream, items, f"{place}.layers", width)
        return self._sketch_rounds(recursion, draft, stream, place, items, width)

    def _sketch_rounds(self, order: VisitOrder, draft: Draft, stream: int, place: str, items: tuple[Any, ...],
                       width: int) -> int:
        """Every layer reads the start of the loop and is known by its place in the order, not by its neighbours."""
        begin = draft.node(operator_label(order), "loop", "", order, stream)
        end = draft.node("loop end", "loop")
        for index, item in enumerate(items):
            entry = draft.node(str(index), "visit", "", None, begin)
            draft.join(draft.op(item, f"{place}.layers.{index}", "mixer", entry, width), end)
        draft.join(begin, end, LOOP)
        return end


def stream_parts(held: Any, field_name: str, width: int, length: Length, name: str = "") -> list[Part]:
    """The items of a field that follow one another in a stream."""
    found = []
    for position, entry in enumerate(kept(held)):
        found.append(Part(f"{name or field_name}.{position}", entry.item, at(field_name, held, entry.index), width, length))
        if entry.item is not None:
            width, length = entry.item.out(width, length)
    return found
