"""Layers under a residual topology of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..axes import Param
from ..graph import RESIDUAL, SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source
from ..plan import Block
from .base import Macro, Part, at, kept
from .residual import (
    CrossLayerKV,
    DenseAverage,
    HyperConnections,
    Ladder,
    LayerMemory,
    Placed,
    Residual,
    ValueResidual,
    attention_of,
    residual_label,
)
from .residual_layers import DenseLayers, HyperLayers, LadderLayers, SharingLayers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..graph import Draft

__all__ = ["Stack"]


@dataclass(frozen=True)
class Stack(Macro):
    """Layers of one width, joined as `residual` says.

    layers: blocks and macros that keep the width and the length. residual: `Residual()`, `DenseAverage()`,
    `ValueResidual()`, `CrossLayerKV(every)`, `LayerMemory()`, `HyperConnections(rate)`, `Ladder()` or a choice of them. In
    hyper-connections and ladders the units are the sublayers of blocks; a macro is one unit, whose change of the stream
    counts.
    """

    layers: Any
    residual: Any = field(default_factory=Residual)
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    source: ClassVar[Source] = Residual.source

    def check(self, width: int, where: str) -> None:
        if not isinstance(self.residual, Residual):
            raise TypeError(f"residual is a topology such as Residual() or DenseAverage() at {where}: got {self.residual!r}")
        self.residual.check(f"{where}.residual")

    def rewrites(self) -> tuple[Callable[[Any], Any], ...]:
        if isinstance(self.residual, LayerMemory):
            return tuple(Placed(before) for before in range(len(kept(self.layers))))
        return (self.residual.rewrite,) if isinstance(self.residual, (ValueResidual, CrossLayerKV)) else ()

    def items(self, width: int) -> list[Any]:
        """The layers that are there, as the topology needs them."""
        return self.residual.rewritten([entry.item for entry in kept(self.layers)], width)  # type: ignore[no-any-return]

    def num_units(self) -> int:
        """Sublayers of blocks and whole macros; a placeholder may be a block with two."""
        counts = [2 if entry.item is None else len(entry.item.sublayers()) if isinstance(entry.item, Block) else 1
                  for entry in kept(self.layers)]
        return sum(counts)

    def axes(self, width: int) -> dict[str, Param]:
        return self.residual.axes(width, len(kept(self.layers)), self.num_units())    # type: ignore[no-any-return]

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return self.residual.macs(width, length, self.num_units())                   # type: ignore[no-any-return]

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return self.residual.macs(width, 1, self.num_units())                        # type: ignore[no-any-return]

    def parts(self, width: int, length: Length) -> list[Part]:
        entries = kept(self.layers)
        return [Part(f"layers.{position}", item, at("layers", self.layers, entry.index), width, length)
                for position, (entry, item) in enumerate(zip(entries, self.items(width), strict=True))]

    def build(self, width: int) -> nn.Module:
        layers = built_layers(self.items(width), width)
        if isinstance(self.residual, DenseAverage) and layers:
            return DenseLayers(layers)
        if isinstance(self.residual, HyperConnections) and self.num_units():
            return HyperLayers(layers, width, self.num_units(), self.residual.rate, self.residual.dynamic)
        if isinstance(self.residual, Ladder):
            return LadderLayers(layers)
        shares = isinstance(self.residual, (ValueResidual, CrossLayerKV, LayerMemory))
        return SharingLayers(layers) if shares else Layers(layers)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        items = self.items(width)
        if isinstance(self.residual, DenseAverage):
            return self._sketch_dense(draft, stream, place, items, width)
        if isinstance(self.residual, (HyperConnections, Ladder)):
            return self._sketch_units(draft, stream, place, items, width)
        first = len(draft.nodes)
        stream = draft.items(items, stream, f"{place}.layers", width)
        self._sketch_shared(draft, place, items, first)
        self._sketch_memory(draft, place, items, first)
        return stream

    def _sketch_dense(self, draft: Draft, stream: int, place: str, items: list[Any], width: int) -> int:
        history = [stream]
        for index, item in enumerate(items):
            history.append(draft.op(item, f"{place}.layers.{index}", "mixer", stream, width))
            stream = draft.node("DenseAverage", "sum", place, None, history[-1])
            for earlier in history[:-1]:
                draft.join(earlier, stream, SKIP)
        return stream

    def _sketch_units(self, draft: Draft, stream: int, place: str, items: list[Any], width: int) -> int:
        """A ladder's unit reads the stream before the last; hyper-connections wrap every unit in two mixing nodes."""
        is_ladder = isinstance(self.residual, Ladder)
        before = stream = stream if is_ladder else draft.node(residual_label(self.residual), "streams", place, None, stream)
        for index, item in enumerate(items):
            for role, norm, op in units_of(item):
                source = before if is_ladder else draft.node("mix", "mix", "", None, stream)
                inner = f"{place}.layers.{index}"
                change = (draft.op(op, inner, "mixer", source, width) if norm is None else
                          draft.branch(f"{inner}.{role}", role, norm, op, source, width))
                total = draft.node("sum", "sum", "", None, change)
                draft.join(stream if is_ladder else source, total, RESIDUAL)
                before, stream = stream, total
        return stream if is_ladder else draft.node("collapse", "streams", place, None, stream)

    def _sketch_shared(self, draft: Draft, place: str, items: list[Any], first: int) -> None:
        """Edges from the attention whose keys and values, or values, another one uses."""
        at_place = {node.place: first + n for n, node in enumerate(draft.nodes[first:])}
        start = held = None
        for index, item in enumerate(items):
            attention = attention_of(item)
            if attention is None:
                continue
            node = at_place[f"{place}.layers.{index}.mixer.op"]
            if attention.reuse_kv and held is not None:
                draft.join(held, node, "kv")
            else:
                held = node
            if attention.value_residual and start is not None:
                draft.join(start, node, "value")
            start = node if start is None else start


    def _sketch_memory(self, draft: Draft, place: str, items: list[Any], first: int) -> None:
        """Edges from the mixers whose keys and values, or tokens, a later one reads."""
        at_place = {node.place: first + n for n, node in enumerate(draft.nodes[first:])}
        held: list[int] = []
        for index, item in enumerate(items):
            mixer: Any = getattr(item, "mixer", None)
            if isinstance(self.residual, LayerMemory) and hasattr(mixer, "before"):
                node = at_place[f"{place}.layers.{index}.mixer.op"]
                offset = getattr(mixer, "offset", None)
                for source in held if offset is None else held[-offset:][:1] if mixer.reads_shared else ():
                    draft.join(source, node, "layers")
                held.append(node)


def units_of(item: Any) -> list[tuple[str, Any, Any]]:
    """(role, norm, operator) of a block's sublayers; a macro is one unit without a norm of its own."""
    if isinstance(item, Block):
        return [(role, item.norm, op) for role, op in item.sublayers()]
    return [("", None, item)]
