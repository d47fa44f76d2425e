"""Layers under a residual topology of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from ..axes import Param
from ..grammar import leaves
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
    PersistentSelection,
    Placed,
    Residual,
    Reversible,
    ValueResidual,
    attention_of,
    residual_label,
)
from .residual_average import FeatureAverage
from .residual_groups import GroupFusion
from .residual_history import DeepCrossAttention, PathEnsemble
from .residual_layers import DenseLayers, DilatedDenseLayers, HyperLayers, LadderLayers, SharingLayers
from .residual_streams import DualStream
from .reversible_layers import ReversibleLayers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..graph import Draft

__all__ = ["Stack"]


@dataclass(frozen=True)
class Stack(Macro):
    """Layers of one width, joined as `residual` says.

    layers: blocks and macros that keep the width and the length. residual: `Residual()`, `DenseAverage()`,
    `ValueResidual()`, `CrossLayerKV(every)`, `LayerMemory()`, `HyperConnections(rate)`, `Ladder()`, `DeepCrossAttention()`,
    `PathEnsemble()`, `FeatureAverage()`, `DualStream()`, `GroupFusion(groups)`, `DeepNorm()`, `DeepScale()`,
    `NormScaling()`, `DepthScale()`, `Reversible()`, `PersistentSelection(dense)` or a choice of them. Where a topology has
    units, these are the sublayers of plain blocks; a macro, or a block with a placement or a join of its own, is one unit,
    whose change of the stream counts.
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

    def check_stream(self, field: str, items: list[Any], where: str) -> None:
        super().check_stream(field, items, where)
        for residual in leaves(self.residual):
            if isinstance(residual, Residual):
                residual.check_layers(items, where)

    def rewrites(self) -> tuple[Callable[[Any], Any], ...]:
        if isinstance(self.residual, LayerMemory):
            return tuple(Placed(before) for before in range(len(kept(self.layers))))
        if isinstance(self.residual, PersistentSelection):
            return self.residual.rewrite, self.residual.rewrite_to_choose
        changes = isinstance(self.residual, (ValueResidual, CrossLayerKV, DeepCrossAttention))
        return (self.residual.rewrite,) if changes else ()

    def items(self, width: int) -> list[Any]:
        """The layers that are there, as the topology needs them."""
        return self.residual.rewritten([entry.item for entry in kept(self.layers)], width)  # type: ignore[no-any-return]

    def num_units(self) -> int:
        """Sublayers of blocks and whole macros; a placeholder may be a block with two."""
        counts = [2 if entry.item is None else len(units_of(entry.item)) for entry in kept(self.layers)]
        return sum(counts)

    def roles(self, width: int) -> list[str]:
        """The role of every unit: mixer or channel, empty for what is no plain sublayer."""
        return [role for item in self.items(width) for role, _, _ in units_of(item)]

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
        if isinstance(self.residual, DualStream) and layers:
            return self.residual.join_roles(layers, self.roles(width))
        joined = self.residual.join(layers, width, self.num_units())
        if joined is not None:
            return joined                                                            # type: ignore[no-any-return]
        if isinstance(self.residual, DenseAverage) and "weights" in self.axes(width):
            dilation, period = self.residual.dilation, self.residual.period
            return DenseLayers(layers) if dilation == period == 1 else DilatedDenseLayers(layers, dilation, period)
        if isinstance(self.residual, HyperConnections) and self.num_units():
            return HyperLayers(layers, width, self.num_units(), self.residual.rate, self.residual.dynamic)
        if isinstance(self.residual, Ladder):
            return LadderLayers(layers)
        if isinstance(self.residual, Reversible) and layers:
            return ReversibleLayers(layers)
        shares = isinstance(self.residual, (ValueResidual, CrossLayerKV, LayerMemory, PersistentSelection))
        return SharingLayers(layers) if shares else Layers(layers)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        items = self.items(width)
        if isinstance(self.residual, (DeepCrossAttention, FeatureAverage, PathEnsemble)) and items:
            return self.residual.sketch_units(draft, stream, place, self._drawn(draft, place, items, width))
        if isinstance(self.residual, DualStream) and items:
            drawn = self._drawn(draft, place, items, width)
            return self.residual.sketch_roles(draft, stream, place, drawn, self.roles(width))
        if isinstance(self.residual, GroupFusion) and items:
            outputs = []
            for index, item in enumerate(items):
                stream = draft.op(item, f"{place}.layers.{index}", "mixer", stream, width)
                outputs.append(stream)
            return self.residual.sketch_layers(draft, place, outputs)
        if isinstance(self.residual, DenseAverage):
            return self._sketch_dense(draft, stream, place, items, width)
        if isinstance(self.residual, (HyperConnections, Ladder)):
            return self._sketch_units(draft, stream, place, items, width)
        if isinstance(self.residual, Reversible) and items:
            return self._sketch_reversible(draft, stream, place, items, width)
        first = len(draft.nodes)
        stream = draft.items(items, stream, f"{place}.layers", width)
        self._sketch_shared(draft, place, items, first)
        self._sketch_memory(draft, place, items, first)
        self._sketch_chosen(draft, place, items, first)
        return stream

    def _drawn(self, draft: Draft, place: str, items: list[Any], width: int) -> list[Callable[[int], int]]:
        """A function per unit that draws it behind a node and returns the node of its change."""
        def drawn(inner: str, role: str, norm: Any, op: Any) -> Callable[[int], int]:
            if norm is None:
                return lambda source: draft.op(op, inner, "mixer", source, width)
            return lambda source: draft.branch(f"{inner}.{role}", role, norm, op, source, width)

        return [drawn(f"{place}.layers.{index}", role, norm, op)
                for index, item in enumerate(items) for role, norm, op in units_of(item)]

    def _sketch_dense(self, draft: Draft, stream: int, place: str, items: list[Any], width: int) -> int:
        history = [stream]
        for index, item in enumerate(items):
            stream = draft.op(item, f"{place}.layers.{index}", "mixer", stream, width)
            history.append(stream)
            if (index + 1) % self.residual.period == 0:
                stream = draft.node("DenseAverage", "sum", place, None, history[-1])
                for earlier in history[(index + 1) % self.residual.dilation:-1:self.residual.dilation]:
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

    def _sketch_reversible(self, draft: Draft, stream: int, place: str, items: list[Any], width: int) -> int:
        """Two streams; a unit reads one, its sum is with the other."""
        first = second = stream = draft.node(residual_label(self.residual), "streams", place, None, stream)
        for index, item in enumerate(items):
            for role, norm, op in units_of(item):
                inner = f"{place}.layers.{index}"
                change = (draft.op(op, inner, "mixer", second, width) if norm is None else
                          draft.branch(f"{inner}.{role}", role, norm, op, second, width))
                total = draft.node("sum", "sum", "", None, change)
                draft.join(first, total, RESIDUAL)
                first, second = second, total
        end = draft.node("collapse", "streams", place, None, second)
        draft.join(first, end)
        return end

    def _sketch_chosen(self, draft: Draft, place: str, items: list[Any], first: int) -> None:
        """Edges from the attention that chose the tokens which another one reads."""
        at_place = {node.place: first + n for n, node in enumerate(draft.nodes[first:])}
        chose = None
        for index, item in enumerate(items):
            reads = getattr(getattr(item, "mixer", None), "reads", None)
            if not isinstance(self.residual, PersistentSelection) or reads not in ("choose", "chosen"):
                continue
            node = at_place[f"{place}.layers.{index}.mixer.op"]
            if reads == "chosen" and chose is not None:
                draft.join(chose, node, "chosen")
            chose = node if reads == "choose" else chose

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
    """(role, norm, operator) of a plain block's sublayers; anything else is one unit without a norm of its own."""
    if isinstance(item, Block) and item.is_plain:
        return [(role, item.norm, op) for role, op in item.sublayers()]
    return [("", None, item)]
