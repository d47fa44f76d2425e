"""Which class of the exported file takes the place of a module of `space/model.py` or of a residual topology."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from .. import model
from ..macros import residual_layers, reversible_layers
from ..macros import units as macro_units
from . import skeleton, stacks, units
from .record import Record

__all__ = ["ALIASES", "stand_in"]

# What source in the file may name, beside what is constructed.
ALIASES: dict[Any, Any] = {model.Sublayer: skeleton.Sublayer, model.BlockModule: skeleton.Layer, model.Layers: stacks.Layers,
                           model.LowRank: skeleton.LowRank, model.Stepping: skeleton.Stepping,
                           macro_units.change: units.change, macro_units.step_change: units.step_change,
                           macro_units.units_of: units.units_of}
Given = dict[str, Any]


def stand_in(records: Mapping[int, Record], adapted: Iterable[nn.Module], starts: Iterable[nn.Module],
             sharing: Collection[type]) -> None:
    """Give every record of such a module its stand-in.

    adapted: blocks that a looped model runs and steps with other weights than their own. starts: modules that start a
    hand-over anybody reads. sharing: the classes of what takes part in one.
    """
    with_weights, handing = {id(m) for m in adapted}, {id(m) for m in starts}
    blocks = [m for r in records.values() if isinstance(m := r.module, model.BlockModule)]
    common = {role: any(hasattr(s.op, "step") for block in blocks for name, s in block.sublayers() if name == role)
              for role in ("mixer", "channel")}
    for key, record in records.items():
        kind = type(record.module)
        if kind is model.BlockModule:
            layer = skeleton.AdaptedLayer if key in with_weights else skeleton.Layer
            _put(record, layer, skeleton.Layer, _of_block(record.module, common))
        elif kind is model.Sublayer:
            given = _given(record)
            hides = given["hides"] and type(given["op"]) in sharing
            _put(record, skeleton.Sublayer, skeleton.Sublayer, {**given, "hides": hides})
        elif kind is residual_layers.SharingLayers and key not in handing:
            _put(record, stacks.Layers, stacks.Layers, {"layers": _given(record)["layers"]})
        elif kind in _WAYS:
            standin, given = _WAYS[kind](_given(record))
            _put(record, standin, standin, given)


def _put(record: Record, standin: type, owner: type, given: Given) -> None:
    record.standin, record.arguments = standin, {owner: given}


def _given(record: Record) -> Given:
    return next(record.arguments[c] for c in type(record.module).__mro__ if c in record.arguments)


def _of_block(block: Any, common: Mapping[str, bool]) -> Given:
    """Both sublayers and whether they have a state; a flag that only matters beside a sublayer follows the others'."""
    pairs = {"mixer": block.mixer, "channel": block.channel}
    flags = {f"{role}_streams": common[role] if s is None else hasattr(s.op, "step") for role, s in pairs.items()}
    return {**pairs, **flags}


def _of_layers(given: Given) -> tuple[type, Given]:
    if given["lora"]:
        return stacks.AdaptedLayers, given
    if given["times"] > 1:
        return stacks.LoopedLayers, {"layers": given["layers"], "times": given["times"]}
    return stacks.Layers, {"layers": given["layers"]}


_WAYS: dict[type, Callable[[Given], tuple[type, Given]]] = {
    model.LowRank: lambda given: (skeleton.LowRank, given),
    model.Layers: _of_layers,
    residual_layers.SharingLayers: lambda given: (stacks.SharingLayers, given),
    residual_layers.LadderLayers: lambda given: (units.LadderLayers, given),
    reversible_layers.ReversibleLayers: lambda given: (units.ReversibleLayers, given),
    residual_layers.HyperLayers: lambda given: (units.HyperLayers, given),
}
