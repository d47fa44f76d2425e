"""The classes and functions an architecture uses, as editable source, and what is known about each of them."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .facts import NOT_NONE, UNKNOWN, Const, Fact, Scope, fact_of, is_plain, join
from .text import nodes, parsed

__all__ = ["PUBLIC_METHODS", "Callee", "Chunk", "Instance", "Program", "parameters_of", "reads"]

# The exported model calls these; their parameters are promises, so they are never specialised away.
PUBLIC_METHODS = ("__init__", "forward", "init_state", "step", "generate", "from_pretrained")
ROUNDS = 4  # facts travel along this many calls per pass
Callee = tuple[str, str]  # (class, method) or ("", function)
Known = tuple[dict[str, Fact], dict[str, Fact]]  # of an instance: arguments, attributes


@dataclass(frozen=True)
class Instance:
    """One construction of a class: the arguments its `__init__` got, by name, and the object's plain attributes."""

    arguments: dict[str, Any]
    attributes: dict[str, Any]


@dataclass
class Chunk:
    """One top-level definition of the exported file. `legend` is the note of the source file it came from."""

    name: str
    kind: Literal["class", "function", "constant"]
    text: str
    home: str = ""
    legend: str = ""
    instances: list[Instance] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.original = self.text


def parameters_of(function: ast.FunctionDef, *, bound: bool) -> list[ast.arg]:
    """Parameters in order, without `self` for a bound method."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return every[1:] if bound else every


def defaults_of(function: ast.FunctionDef) -> dict[str, ast.expr]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    found = dict(zip([a.arg for a in positional[len(positional) - len(arguments.defaults):]], arguments.defaults,
                     strict=True))
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return found | {a.arg: d for a, d in keyword if d is not None}


def bind(call: ast.Call, function: ast.FunctionDef, *, bound: bool) -> dict[str, ast.expr] | None:
    """Which argument of a call goes to which parameter; None when it unpacks and cannot be told."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return None
    names = [p.arg for p in parameters_of(function, bound=bound)]
    found = dict(zip(names, call.args, strict=False))
    return found | {k.arg: k.value for k in call.keywords if k.arg is not None}


@dataclass(frozen=True)
class Reads:
    """Which names and attributes a piece of source names and how often; whose attributes it reads."""

    names: tuple[str, ...]
    name_uses: Counter[str]
    attribute_uses: Counter[str]
    of_self: frozenset[str]
    of_others: frozenset[str]


@lru_cache(maxsize=8192)
def reads(text: str) -> Reads:
    """What a piece of source reads: most pieces stay as they are from round to round."""
    found = nodes(parsed(text).tree)
    names = [n for n in found if isinstance(n, ast.Name)]
    attributes = [n for n in found if isinstance(n, ast.Attribute)]
    loaded = [(n.attr, isinstance(n.value, ast.Name) and n.value.id == "self") for n in attributes
              if isinstance(n.ctx, ast.Load)]
    return Reads(tuple(dict.fromkeys(n.id for n in names)),
                 Counter(n.id for n in names if isinstance(n.ctx, ast.Load)), Counter(n.attr for n in attributes),
                 frozenset(a for a, own in loaded if own), frozenset(a for a, own in loaded if not own))


@lru_cache(maxsize=8192)
def _stored(function: ast.FunctionDef) -> frozenset[str]:
    """The attributes, of whatever, that a function assigns."""
    return frozenset(n.attr for n in nodes(function)
                     if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store | ast.Del))


@lru_cache(maxsize=8192)
def _calls_in(function: ast.FunctionDef) -> tuple[ast.Call, ...]:
    return tuple(n for n in nodes(function) if isinstance(n, ast.Call))


class Program:
    """All chunks, parsed, with the facts of the present round.

    `source[name]` is the parsed text, `functions[callee]` the definitions, `scopes(callee)` one `Scope` per instance.
    """

    def __init__(self, chunks: dict[str, Chunk]):
        self.chunks = chunks
        self.source = {name: parsed(chunk.text) for name, chunk in chunks.items()}
        self.functions: dict[Callee, ast.FunctionDef] = {}
        for name, source in self.source.items():
            top = source.tree.body[0]
            if isinstance(top, ast.FunctionDef):
                self.functions["", name] = top
            elif isinstance(top, ast.ClassDef):
                self.functions |= {(name, f.name): f for f in top.body if isinstance(f, ast.FunctionDef)}
        self._families: dict[str, list[str]] = {}
        self.constants = {name: self._constant(name) for name, c in chunks.items() if c.kind == "constant"}
        self._index()
        self.instances = {name: self._known(name) for name, c in chunks.items() if c.kind == "class"}
        self.stable = {name: self._stable_attributes(name) for name, c in chunks.items() if c.kind == "class"}
        self.calls = self._calls()
        self.facts: dict[Callee, dict[str, Fact]] = {}
        self._scopes: dict[Callee, list[Scope]] = {}
        for _ in range(ROUNDS):
            before, self.facts = self.facts, {callee: self._parameter_facts(callee) for callee in self.functions}
            if self.facts == before:
                break
            self._scopes = {callee: self._scopes[callee] if before.get(callee) == self.facts[callee]
                            else self._make_scopes(callee) for callee in self.functions}

    def _index(self) -> None:
        """Who reads which names and attributes; `self_reads` by class, `other_reads` through anything but self."""
        found = {name: reads(chunk.text) for name, chunk in self.chunks.items()}
        self.name_uses: Counter[str] = Counter()
        self.attribute_uses: Counter[str] = Counter()
        for read in found.values():
            self.name_uses.update(read.name_uses)
            self.attribute_uses.update(read.attribute_uses)
        self.self_reads = {name: read.of_self for name, read in found.items()}
        self.other_reads = {attribute for read in found.values() for attribute in read.of_others}

    def is_read(self, name: str, attribute: str) -> bool:
        """Whether a class, a relative, or anybody through another name than self reads this attribute of it."""
        return attribute in self.other_reads or any(attribute in self.self_reads[n] for n in self.related(name))

    def _constant(self, name: str) -> Fact:
        statement = self.source[name].tree.body[0]
        value: Any = getattr(statement, "value", None)
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError):
            return NOT_NONE
        return Const(literal) if is_plain(literal) else NOT_NONE

    def family(self, name: str) -> list[str]:
        """The class and its ancestors in this program, nearest first."""
        if name not in self._families:
            top = self.source[name].tree.body[0]
            bases = [b.id for b in top.bases if isinstance(b, ast.Name)] if isinstance(top, ast.ClassDef) else []
            self._families[name] = [name] + [a for b in bases if b in self.chunks for a in self.family(b)]
        return self._families[name]

    def callees(self, name: str) -> list[Callee]:
        """The functions of a chunk."""
        return [callee for callee in self.functions if (callee[0] or callee[1]) == name]

    def related(self, name: str) -> set[str]:
        """The class with its descendants, and all of their ancestors."""
        classes = (c for c, chunk in self.chunks.items() if chunk.kind == "class")
        return {n for c in classes for family in [self.family(c)] if name in family for n in family}

    def _stable_attributes(self, name: str) -> set[str]:
        """`self` attributes assigned in `__init__` alone, by this class and its relatives."""
        relatives, stored = self.related(name), defaultdict[str, set[str]](set)
        for (owner, method), function in self.functions.items():
            if owner in relatives:
                for attribute in _stored(function):
                    stored[attribute].add(method)
        return {attribute for attribute, methods in stored.items() if methods == {"__init__"}}

    def scopes(self, callee: Callee) -> list[Scope]:
        return self._scopes[callee]

    def fact(self, callee: Callee, node: ast.expr) -> Fact:
        """What holds for an expression of this function in every instance."""
        return join(scope(node) for scope in self.scopes(callee))

    def _make_scopes(self, callee: Callee) -> list[Scope]:
        """One scope for each different set of facts that the instances give."""
        owner, method = callee
        function = self.functions[callee]
        if not owner:
            return [Scope(function, self.facts[callee], {}, self.constants)]
        stable = self.stable[owner]
        family = self.family(owner)
        own = frozenset(m for o, m in self.functions if o in family)
        different: list[Known] = []
        for arguments, seen in self.instances[owner]:
            attributes = {k: v for k, v in seen.items() if k in stable}
            parameters = arguments if method == "__init__" else self.facts[callee]
            if (parameters, attributes) not in different:
                different.append((parameters, attributes))
        return [Scope(function, parameters, attributes, self.constants, own) for parameters, attributes in different]

    def _known(self, name: str) -> list[Known]:
        """What is known of the instances of a class, those that do not differ once."""
        different: list[Known] = []
        for instance in self.chunks[name].instances or [Instance({}, {})]:
            known = ({k: fact_of(v) for k, v in instance.arguments.items()},
                     {k: fact_of(v) for k, v in instance.attributes.items()})
            if known not in different:
                different.append(known)
        return different

    def signature(self, name: str) -> Hashable:
        """All that folding a chunk depends on."""
        owner = self.instances.get(name)
        facts = [self.facts[callee] for callee in self.callees(name)]
        family = self.family(name)
        own = [m for o, m in self.functions if o in family]
        return name, self.chunks[name].text, repr((owner, sorted(self.stable.get(name, ())), facts, own))

    def sites(self) -> Iterator[tuple[Callee, ast.Call, str]]:
        """Every call inside the program's functions, with the function and chunk it stands in."""
        for callee, function in self.functions.items():
            for call in _calls_in(function):
                yield callee, call, callee[0] or callee[1]

    def target(self, caller: Callee, call: ast.Call) -> Callee | None:
        """The function of this program that a call reaches, where that is plain to see."""
        if isinstance(call.func, ast.Name) and call.func.id in self.chunks:
            name = call.func.id
            if ("", name) in self.functions:
                return "", name
            return (name, "__init__") if (name, "__init__") in self.functions else None
        function = call.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self":
            for owner in self.family(caller[0]) if caller[0] else []:
                if (owner, function.attr) in self.functions:
                    return owner, function.attr
        return None

    def _calls(self) -> dict[Callee, list[tuple[Callee, ast.Call]]]:
        found: dict[Callee, list[tuple[Callee, ast.Call]]] = defaultdict(list)
        for caller, call, _ in self.sites():
            target = self.target(caller, call)
            if target is not None:
                found[target].append((caller, call))
        return found

    def closed(self, callee: Callee) -> bool:
        """Whether every use of a function is a call in sight, so that its parameters may change."""
        owner, name = callee
        if owner and name in PUBLIC_METHODS:
            return name == "__init__"
        overridden = bool(owner) and sum(method == name for _, method in self.functions) > 1
        uses = self.attribute_uses[name] if owner else self.name_uses[name]
        if self.functions[callee].args.vararg or self.functions[callee].args.kwarg or overridden:
            return False
        return uses == len(self.calls[callee]) and all(
            bind(call, self.functions[callee], bound=bool(owner)) is not None for _, call in self.calls[callee])

    def _parameter_facts(self, callee: Callee) -> dict[str, Fact]:
        owner, name = callee
        if (owner and name == "__init__") or not self.closed(callee):
            return {}
        function, facts = self.functions[callee], {}
        defaults = defaults_of(function)
        for parameter in parameters_of(function, bound=bool(owner)):
            cases: list[Fact] = []
            for caller, call in self.calls[callee]:
                bound = bind(call, function, bound=bool(owner)) or {}
                given = bound.get(parameter.arg, defaults.get(parameter.arg))
                if given is None:
                    cases.append(UNKNOWN)
                elif parameter.arg in bound:
                    cases.append(self.fact(caller, given) if caller in self._scopes else UNKNOWN)
                else:
                    cases.append(Const(given.value) if isinstance(given, ast.Constant) else NOT_NONE)
            facts[parameter.arg] = join(cases)
        return facts
