"""The definitions of an exported file: collected, told what one architecture never varies, and specialised to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..joined import JoinedBlock
from ..macros import running as house_running
from ..model import BlockModule, Sublayer
from ..operators import spatial
from . import running, skeleton, stacks, units
from .built import Built, is_joined
from .collect import Collector
from .fold import specialise
from .inline import RUNNING, Parts, inlined, of_rank
from .program import Chunk, Instance
from .record import Record
from .sharing import NAME, hands_on_alone, is_house, keys_read, without, without_checks, without_keys
from .standins import ALIASES
from .text import Text, apply

__all__ = ["Definitions", "definitions"]

SKELETAL = (skeleton.Sublayer, skeleton.Layer, skeleton.AdaptedLayer, skeleton.LowRank)
DECODING = frozenset({"init_state", "step"})
LOGITS = "Logits of the token after every position, shape (B, T, V)."
_WITH_SOURCE = tuple((says, f"{says[:-1]}; without a source the encoder reads the input itself.")
                     for says in (LOGITS, "What the head makes of the input.")) + (
    ("source: Tensor | None = None) -> list[Any]:", "source: Tensor | None = None) -> dict[str, Any]:"),
    ("state: list[Any]) -> tuple[Tensor, list[Any]]:", "state: Any) -> tuple[Tensor, list[Any]]:"))
RUNNERS = tuple(getattr(running, name) for name in running.__all__)
_CHECKER = re.compile(r"[ \t]*# (type: ignore|noqa)\b[^\n]*")


# A corrected layer is called by its name and weights, so that no function of `running` can ask what it takes.
ADAPTED = "(x_BTD, shared))\n        return x_BTD"
ASKED = """(x_BTD, shared) if getattr(layer, "shares", False) else (x_BTD,))
        return x_BTD"""


@dataclass(frozen=True)
class Handed:
    """What is known of the hand-over between layers: the classes that take part, the names read (None: not yet known)."""

    classes: frozenset[type]
    read: frozenset[str] | None = None


def definitions(built: Built, *, generates: bool, streams: bool) -> Definitions:
    """The specialised definitions of a model.

    What is handed on but never read shows only once branches are folded, so this goes around until nothing more goes.
    """
    handed = Handed(built.sharing())
    while True:
        found = Definitions(built, handed, generates=generates, streams=streams)
        better = found.handed_on()
        if better == handed:
            return found
        handed = better


class Definitions:
    """`chunks` by name, each after what it uses, the model class last; `given` holds the arguments left of each record."""

    def __init__(self, built: Built, handed: Handed, *, generates: bool, streams: bool):
        self.built, self.handed, self.streams = built, handed, streams
        self.collector = Collector(ALIASES)
        roots = self._collect()
        self._prepare()
        self._trim(generates=generates)
        self._arguments: dict[tuple[int, type], dict[str, Any]] = {}
        self._set_instances()
        self.chunks = specialise(self.collector.chunks, roots)
        marked = self._names(c for r in built.records.values() if type(r.module) in self._marked for c in r.classes())
        for name in self.chunks.keys() - marked:
            self.chunks[name].text = _without_mark(self.chunks[name].text)

    def given(self, record: Record, cls: type) -> dict[str, Any] | None:
        return self._arguments.get((id(record.module), cls))

    def handed_on(self) -> Handed:
        """What these definitions show about the hand-over."""
        if not self.handed.classes:
            return self.handed
        operators = {c for r in self.built.records.values() if r.standin is None and not is_joined(r.module)
                     for c in r.classes()}
        texts = {c: self.chunks[name].text for c in operators
                 if (name := self.collector.name_of(c)) in self.chunks and c in self.handed.classes}
        users = {c for c in texts if any(not hands_on_alone(texts[base]) for base in c.__mro__ if base in texts)}
        needed = {base for c in users for base in c.__mro__}
        return Handed(self.handed.classes - (texts.keys() - needed), keys_read(self.chunks.values()))

    # -- what goes in --------------------------------------------------------------------------------------------------

    def _collect(self) -> list[str]:
        """Take in every class; returns their names in the order of the file."""
        leaves, holders = self.built.roots()
        skeletal = [c for c in SKELETAL if c in holders or (c is skeleton.LowRank and self.built.is_adapted)]
        last = [self.collector.add(c) for c in (*skeletal, skeleton.Model)]
        for runner in (*RUNNERS, units.change, units.step_change, units.units_of, stacks.handed):
            self.collector.add(runner)
        first = [self.collector.add(c) for c in leaves]
        others = [self.collector.add(c) for c in holders if c not in SKELETAL]
        return [*first, *last[:-1], *others, last[-1]]

    def _names(self, classes: Iterable[type]) -> set[str]:
        return {name for c in classes if (name := self.collector.name_of(c)) is not None}

    # -- what the specialiser is told ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Write out how parts are run, and take out what is not handed on."""
        chunks, taking, parts = self.collector.chunks, self._taking(), self._parts()
        self._marked = parts.marked
        functions = {name for name, chunk in chunks.items() if chunk.kind == "function"}
        sources = {name: getattr(home, name) for home, names in _HOMES for name in names}
        names = {plain: final for plain, source in sources.items() if (final := self.collector.name_of(source))}
        for name, chunk in chunks.items():
            text = _CHECKER.sub("", chunk.text)
            if name == "Model" and not self.built.has_source:
                text = without(text, "source", functions)
            if name == "AdaptedLayers":
                text = self._asked(text)
            if is_house(chunk) or "shares" in text:
                text = self._shared(chunk, text, name in taking, functions)
            text = of_rank(text, chunk.home, 4 if self.built.grid else 3)
            if name not in names.values():
                text = inlined(text, name, parts, names)
            elif name in parts.given:
                text = inlined(text, name, parts, {k: v for k, v in names.items() if v not in parts.given})
            chunk.text = chunk.original = text

    def _asked(self, text: str) -> str:
        """Corrected layers, asked at run time whether they take what is handed on where some do and some do not."""
        adapted = {type(layer) for layer in self.built.adapted()}
        takers = adapted & self.handed.classes
        if not takers or takers == adapted:
            return text
        self._marked |= takers
        changed = text.replace(ADAPTED, ASKED)
        assert changed != text
        return changed

    def _shared(self, chunk: Chunk, text: str, takes_part: bool, functions: set[str]) -> str:
        if not takes_part:
            return without(text, NAME, functions, local=chunk.name == "Model")
        text = without_checks(text) if is_house(chunk) else text
        return text if self.handed.read is None else without_keys(text, self.handed.read)

    def _taking(self) -> set[str]:
        """The definitions that take what layers hand on."""
        if not self.handed.classes:
            return set()
        records = [r for r in self.built.records.values() if type(r.module) in self.handed.classes]
        found = self._names(c for r in records for c in r.classes())
        functions = {name for name, chunk in self.collector.chunks.items() if chunk.kind == "function"}
        model = {"Model"} if self.built.has_source else set()
        steps = bool({"AdaptedLayers", "NormedRounds"} & found) or (self.built.has_source and self.built.wraps)
        return found | functions | model | ({"Stepping"} if steps else set())

    def _parts(self) -> Parts:
        held: dict[str, list[nn.Module]] = {"Model": [nn.ModuleDict({"layers": self.built.layers})]}
        for record in self.built.records.values():
            for name in self._names(record.classes()):
                held.setdefault(name, []).append(record.module)
        stacked = self.built.stacked()
        given = {"Stepping": self.built.adapted(), "change": stacked, "step_change": stacked}
        asked = () if stacked else self._names([skeleton.Sublayer])
        return Parts(self.built.grid, lambda m: type(m) in self.handed.classes, BlockModule,
                     (BlockModule, JoinedBlock), held, given, asked)

    def _trim(self, *, generates: bool) -> None:
        """Take out what this kind of model does not do at all."""
        chunks = self.collector.chunks
        for name in self._running():
            chunks[name].text = _without_methods(chunks[name].text, self._not_done(name))
        model = chunks["Model"]
        if not generates:
            model.text = _without_methods(model.text, {"generate"}).replace(LOGITS, "What the head makes of the input.")
            model.text = model.text.replace("ids_BT", self.built.input_name)
        if self.built.has_source:
            for one, two in _WITH_SOURCE:
                model.text = model.text.replace(one, two)

    def _running(self) -> set[str]:
        """The classes that run parts."""
        _, holders = self.built.roots()
        return self._names([*holders, skeleton.Layer, skeleton.Model, skeleton.Stepping])

    def _not_done(self, name: str) -> set[str]:
        """Methods of a class that nobody calls."""
        if not self.streams and (name == "Model" or not self.built.continues):
            return set(DECODING)
        blocks = [r.module for r in self.built.records.values() if isinstance(r.module, BlockModule)]
        stacked = {id(m) for m in self.built.stacked()}
        if name == "Layer" and stacked and all(id(m) in stacked for m in blocks):
            return {"forward", *DECODING}                            # their sublayers run without them
        if name == "Sublayer" and not stacked:
            ops = [r.module.op for r in self.built.records.values() if isinstance(r.module, Sublayer)]
            return {"init_state"} if any(hasattr(op, "step") for op in ops) else set(DECODING)
        return set()

    def _set_instances(self) -> None:
        for record in self.built.records.values():
            for cls in record.classes():
                name = self.collector.name_of(cls)
                if name is not None:
                    arguments = self._arguments[id(record.module), cls] = dict(record.arguments.get(cls, {}))
                    self.collector.chunks[name].instances.append(Instance(arguments, record.attributes()))
        plan = self.built.architecture.plan
        numbers = {"times": plan.recursion.times, "rank": plan.recursion.lora_rank, "streams": self.streams,
                   "tied": bool(getattr(plan.head, "tied", False)), "wraps": self.built.wraps, "reads": self.built.has_source}
        self.collector.chunks["Model"].instances.append(Instance(dict(numbers), dict(numbers)))


_HOMES = ((house_running, ("as_sequence", "step_part", "initial_state")), (spatial, ("as_grid",)),
          (units, ("change", "step_change", "units_of")), (stacks, ("handed",)))
assert {name for _, names in _HOMES for name in names} == set(RUNNING)


def _without_methods(text: str, names: set[str]) -> str:
    source = Text(text)
    top = source.tree.body[0]
    assert isinstance(top, ast.ClassDef)
    return apply(text, [source.removal(n) for n in top.body if isinstance(n, ast.FunctionDef) and n.name in names])


def _without_mark(text: str) -> str:
    """A class without the mark `shares = True`, which nobody reads here."""
    return re.sub(r"\n    shares = True\n\n?", "\n", text)
