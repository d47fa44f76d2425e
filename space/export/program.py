"""The classes and functions an architecture uses, as editable source, and what is known about each of them."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .facts import NOT_NONE, UNKNOWN, Const, Fact, Scope, fact_of, is_plain, join
from .text import Text

__all__ = ["PUBLIC_METHODS", "Callee", "Chunk", "Instance", "Program", "parameters_of"]

# The exported model calls these; their parameters are promises, so they are never specialised away.
PUBLIC_METHODS = ("__init__", "forward", "init_state", "step", "generate", "from_pretrained")
ROUNDS = 4  # facts travel along this many calls per pass
Callee = tuple[str, str]  # (class, method) or ("", function)


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


class Program:
    """All chunks, parsed, with the facts of the present round.

    `source[name]` is the parsed text, `functions[callee]` the definitions, `scopes(callee)` one `Scope` per instance.
    """

    def __init__(self, chunks: dict[str, Chunk]):
        self.chunks = chunks
        self.source = {name: Text(chunk.text) for name, chunk in chunks.items()}
        self.functions: dict[Callee, ast.FunctionDef] = {}
        for name, source in self.source.items():
            top = source.tree.body[0]
            if isinstance(top, ast.FunctionDef):
                self.functions["", name] = top
            elif isinstance(top, ast.ClassDef):
                self.functions |= {(name, f.name): f for f in top.body if isinstance(f, ast.FunctionDef)}
        self.constants = {name: self._constant(name) for name, c in chunks.items() if c.kind == "constant"}
        self.attributes_read = self._attributes_read()
        self.facts: dict[Callee, dict[str, Fact]] = {}
        self.calls = self._calls()
        self._scopes: dict[Callee, list[Scope]] = {}
        for _ in range(ROUNDS):
            self.facts = {callee: self._parameter_facts(callee) for callee in self.functions}
            self._scopes = {callee: list(self._make_scopes(callee)) for callee in self.functions}

    def _constant(self, name: str) -> Fact:
        statement = self.source[name].tree.body[0]
        value = getattr(statement, "value", None)
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError):
            return NOT_NONE
        return Const(literal) if is_plain(literal) else NOT_NONE

    def _attributes_read(self) -> set[str]:
        nodes = (n for source in self.source.values() for n in ast.walk(source.tree))
        return {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}

    def family(self, name: str) -> list[str]:
        """The class and its ancestors in this program, nearest first."""
        top = self.source[name].tree.body[0]
        bases = [b.id for b in top.bases if isinstance(b, ast.Name)] if isinstance(top, ast.ClassDef) else []
        return [name] + [a for b in bases if b in self.chunks for a in self.family(b)]

    def stable_attributes(self, name: str) -> set[str]:
        """`self` attributes assigned in `__init__` alone, by this class and its relatives."""
        relatives = {n for c in self.chunks if self.chunks[c].kind == "class" and name in self.family(c)
                     for n in self.family(c)}
        stored: dict[str, set[str]] = defaultdict(set)
        for relative in relatives:
            for callee, function in self.functions.items():
                if callee[0] == relative:
                    for node in ast.walk(function):
                        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                            stored[node.attr].add(callee[1])
        return {attribute for attribute, methods in stored.items() if methods == {"__init__"}}

    def scopes(self, callee: Callee) -> list[Scope]:
        return self._scopes[callee]

    def fact(self, callee: Callee, node: ast.expr) -> Fact:
        """What holds for an expression of this function in every instance."""
        return join(scope(node) for scope in self.scopes(callee))

    def truth(self, callee: Callee, test: ast.expr) -> bool | None:
        """Which way a test goes in every instance; None when that varies or is not known."""
        facts = [scope(test) for scope in self.scopes(callee)]
        ways = {bool(f.value) if isinstance(f, Const) else None for f in facts}
        return ways.pop() if len(ways) == 1 else None

    def _make_scopes(self, callee: Callee) -> Iterator[Scope]:
        owner, method = callee
        function = self.functions[callee]
        if not owner:
            yield Scope(function, self.facts[callee], {}, self.constants)
            return
        chunk, stable = self.chunks[owner], self.stable_attributes(owner)
        own = frozenset(m for o, m in self.functions if o in self.family(owner))
        for instance in chunk.instances or [Instance({}, {})]:
            attributes = {k: fact_of(v) for k, v in instance.attributes.items() if k in stable}
            parameters = self.facts[callee]
            if method == "__init__":
                parameters = {k: fact_of(v) for k, v in instance.arguments.items()}
            yield Scope(function, parameters, attributes, self.constants, own)

    def sites(self) -> Iterator[tuple[Callee, ast.Call, str]]:
        """Every call inside the program's functions, with the function and chunk it stands in."""
        for callee, function in self.functions.items():
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    yield callee, node, callee[0] or callee[1]

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
        if owner:
            if name in PUBLIC_METHODS:
                return name == "__init__"
            overridden = sum(method == name for _, method in self.functions) > 1
            uses = sum(self._uses(lambda n: isinstance(n, ast.Attribute) and n.attr == name))
        else:
            overridden = False
            uses = sum(self._uses(lambda n: isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)))
        if self.functions[callee].args.vararg or self.functions[callee].args.kwarg or overridden:
            return False
        return uses == len(self.calls[callee]) and all(
            bind(call, self.functions[callee], bound=bool(owner)) is not None for _, call in self.calls[callee])

    def _uses(self, matches: Any) -> Iterable[bool]:
        return (bool(matches(n)) for source in self.source.values() for n in ast.walk(source.tree))

    def _parameter_facts(self, callee: Callee) -> dict[str, Fact]:
        owner, name = callee
        if (owner and name == "__init__") or not self.closed(callee):
            return {}
        function, facts = self.functions[callee], {}
        defaults = defaults_of(function)
        for parameter in parameters_of(function, bound=bool(owner)):
            cases = []
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
