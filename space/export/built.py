"""The modules of an architecture as the exported file constructs them, and what they hand to one another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from ..joined import JoinedBlock, JoinedSublayer
from ..macros.base import Macro
from ..macros.conditioned import ConditionedLayers
from ..macros.encoder_decoder import EncoderDecoderLayers
from ..macros.framed import FramedLayers
from ..macros.latent_reasoning import ReasoningLayers
from ..macros.prompted import PromptedLayers
from ..macros.recursion_layers import NormedRounds
from ..macros.residual_layers import HyperLayers, LadderLayers, SharingLayers
from ..macros.reversible_layers import ReversibleLayers
from ..macros.state_fusion import FusedStates
from ..macros.units import UnitLayers
from ..model import BlockModule, Layers, Sublayer
from .record import Record, construct, is_own_class
from .sharing import below
from .standins import stand_in

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["Built", "is_joined"]


class Built:
    """Every part of a model on the meta device. `parts` by name: "embed", "layers.0", ..., "norm", "head"."""

    def __init__(self, architecture: Architecture, *, streams: bool):
        self.architecture, plan = architecture, architecture.plan
        self.records: dict[int, Record] = {}
        width, self.parts = plan.width, {"embed": self._construct(plan.embed, plan.width)}
        for i, item in enumerate(plan.layers):
            self.parts[f"layers.{i}"] = self._construct(item, width)
            width = item.out(width, 1)[0]
        self.parts |= {"norm": self._construct(plan.norm, width), "head": self._construct(plan.head, width)}
        self.layers = nn.ModuleList([self.parts[f"layers.{i}"] for i in range(len(plan.layers))])
        self.is_adapted = plan.recursion.lora_rank > 0
        self.wraps = self.is_adapted and not all(isinstance(m, BlockModule) for m in self.layers)
        self.grid = bool(getattr(plan.embed, "grid", False))
        forward = inspect.signature(self.parts["embed"].forward)
        self.input_name = "ids_BT" if plan.embed.causal else next(iter(forward.parameters))
        self._find_readers()
        stand_in(self.records, self.layers if self.is_adapted and streams and not self.wraps else (), self.starts,
                 self.sharing())

    def _construct(self, item: Any, width: int) -> nn.Module:
        module, records = construct(lambda: item.build(width))
        self.records |= records
        return module

    def _find_readers(self) -> None:
        """`starts`: modules that start a hand-over that somebody below reads; all parts where a source comes in.

        `spreads`: whether something is handed on beside the keys and values of sharing layers.
        """
        reading = {id(self[name]) for name, op in self.architecture.modules if getattr(op, "reads_shared", False)}
        modules = [record.module for record in self.records.values()]
        self.has_source = any(isinstance(m, EncoderDecoderLayers | PromptedLayers) for m in modules)
        self.continues = any(isinstance(m, ReasoningLayers) for m in modules)      # from states, within one pass
        handing = (EncoderDecoderLayers, ConditionedLayers, PromptedLayers, FramedLayers, FusedStates)
        starts: list[nn.Module] = [m for m in modules if isinstance(m, handing)]
        self.spreads = bool(starts)
        starts += [m for m in modules if isinstance(m, SharingLayers) and any(id(part) in reading for part in m.modules())]
        covered = {id(m) for start in starts for m in start.modules()}
        if self.has_source or not reading <= covered:               # a hand-over that is not one of these: everywhere
            starts.append(self.layers)
            self.spreads = True
            covered |= {id(m) for m in self.layers.modules()}
        shields = [m for m in modules if isinstance(m, SharingLayers) and id(m) in covered and m not in starts]
        self.starts = [*starts, *shields]          # what goes on outside does not reach inside

    def __getitem__(self, name: str) -> nn.Module:
        """The module of an operator by its prefix in the model's state_dict."""
        part = next(p for p in (name, ".".join(name.split(".")[:2])) if p in self.parts)
        return self.parts[part].get_submodule(name[len(part):].lstrip("."))

    def sharing(self) -> frozenset[type]:
        """The classes that take what layers hand on."""
        return below(self.starts, passes_on={Sublayer}, hides=self._hides)

    def _hides(self, owner: nn.Module, part: nn.Module) -> bool:
        """Whether a part gets nothing: keys and values are for the own mixers of sharing layers."""
        if self.spreads:
            return False
        if isinstance(owner, JoinedSublayer):
            return owner.hides and part is owner.op
        return owner.hides if isinstance(owner, Sublayer) else (
            isinstance(owner, SharingLayers) and not isinstance(part, BlockModule | JoinedBlock))

    def written(self) -> Iterator[Record]:
        """The modules that the file constructs by name, parts before what they are given to."""
        seen: set[int] = set()

        def visit(value: Any) -> Iterator[Record]:
            if isinstance(value, list | tuple):
                for item in value:
                    yield from visit(item)
            elif isinstance(value, dict):
                yield from visit(list(value.values()))
            elif isinstance(value, nn.Module) and id(value) in self.records and id(value) not in seen:
                seen.add(id(value))
                record = self.records[id(value)]
                for given in record.arguments.values():
                    yield from visit(given)
                yield record

        for part in self.parts.values():
            yield from visit(part)

    def roots(self) -> tuple[list[type], list[type]]:
        """The own classes of operators and what they are given, then those that hold operators, each in order."""
        macros = {id(self[name]) for name, op in self.architecture.modules if isinstance(op, Macro)}
        leaves: list[type] = []
        holders: list[type] = []
        for record in self.written():
            cls = record.classes()[0]
            if is_own_class(cls):
                holds = record.standin is not None or id(record.module) in macros or is_joined(record.module)
                (holders if holds else leaves).append(cls)
        return list(dict.fromkeys(leaves)), list(dict.fromkeys(holders))

    def stacked(self) -> list[nn.Module]:
        """The layers of stacks whose units are sublayers."""
        kinds = HyperLayers | LadderLayers | UnitLayers | ReversibleLayers
        return [layer for r in self.records.values() if isinstance(r.module, kinds)
                for layer in r.module.layers]

    def adapted(self) -> list[nn.Module]:
        """The layers that run with other weights than their own, wrapped to step."""
        inner = [layer for r in self.records.values()
                 if (isinstance(r.module, Layers) and len(r.module.lora)) or isinstance(r.module, NormedRounds)
                 for layer in r.module.layers]
        return [*inner, *(self.layers if self.wraps else [])]


def is_joined(module: nn.Module) -> bool:
    """Whether it is a block, or a sublayer, that is written out as it stands in `space/joined.py`."""
    return isinstance(module, JoinedBlock | JoinedSublayer)
