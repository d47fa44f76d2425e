"""What is known about an expression when a found architecture's numbers are put in: a constant, not None, or nothing.

Everything here errs towards knowing less: a wrong fact would change what the exported model computes.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["NOT_NONE", "PRESENT", "UNKNOWN", "Const", "Fact", "Scope", "fact_of", "is_plain", "join", "truth"]


@dataclass(frozen=True)
class Const:
    """The expression always has this value."""

    value: Any


@dataclass(frozen=True)
class Vague:
    """Less than a value: `NOT_NONE` rules None out, `UNKNOWN` rules out nothing."""

    name: str


NOT_NONE, UNKNOWN = Vague("not None"), Vague("unknown")
Fact = Const | Vague

PRESENT = object()  # stands for a submodule or parameter where only its being there matters

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}
_BUILTINS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "int": int, "float": float, "abs": abs,
                                            "bool": bool, "round": round, "len": len}
_MAY_GIVE_NONE = {"get", "pop", "setdefault", "group", "grad"}


def is_plain(value: Any) -> bool:
    """Whether `repr(value)` can stand in source text for the value."""
    if isinstance(value, tuple | list):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


def fact_of(value: Any) -> Fact:
    """The fact for a value seen on a built module."""
    return Const(value) if is_plain(value) else NOT_NONE


def join(facts: Iterable[Fact]) -> Fact:
    """What holds in every case at once; with no case nothing is known."""
    found = list(facts)
    if not found:
        return UNKNOWN
    first = found[0]
    if isinstance(first, Const) and all(isinstance(f, Const) and _same(f.value, first.value) for f in found):
        return first
    if all(f == NOT_NONE or (isinstance(f, Const) and f.value is not None) for f in found):
        return NOT_NONE
    return UNKNOWN


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


class Scope:
    """Facts inside one function of one instance: parameters, `self.` attributes, names assigned once, constants."""

    def __init__(self, function: ast.FunctionDef, parameters: Mapping[str, Fact], attributes: Mapping[str, Fact],
                 constants: Mapping[str, Fact], own_methods: frozenset[str] = frozenset()):
        self.attributes, self.constants, self.own_methods = attributes, constants, own_methods
        bindings = _bindings(function)
        self.limits = bindings.limits
        self.parameters = parameters
        arguments = function.args
        self.names = {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
        self.local: dict[str, Fact] = {}
        for name, value in bindings.once:
            if name not in self.names:
                self.local[name] = self(value)

    def __call__(self, node: ast.expr) -> Fact:
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        return UNKNOWN if handler is None else handler(node)

    def _constant(self, node: ast.Constant) -> Fact:
        return Const(node.value)

    def _name(self, node: ast.Name) -> Fact:
        if node.id in self.names:
            limit = self.limits.get(node.id)
            before = limit is None or (node.lineno, node.col_offset) < limit
            return self.parameters.get(node.id, UNKNOWN) if before else UNKNOWN
        if node.id in self.local:
            return self.local[node.id]
        return UNKNOWN if node.id in self.limits else self.constants.get(node.id, UNKNOWN)

    def _attribute(self, node: ast.Attribute) -> Fact:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.attributes.get(node.attr, UNKNOWN)
        return NOT_NONE if node.attr in ("shape", "device", "dtype") else UNKNOWN

    def _tuple(self, node: ast.Tuple) -> Fact:
        parts = [self(e) for e in node.elts]
        known = [p.value for p in parts if isinstance(p, Const)]
        return Const(tuple(known)) if len(known) == len(parts) else NOT_NONE

    def _list(self, node: ast.List) -> Fact:
        return NOT_NONE

    def _dict(self, node: ast.Dict) -> Fact:
        return NOT_NONE

    def _joinedstr(self, node: ast.JoinedStr) -> Fact:
        return NOT_NONE

    def _unaryop(self, node: ast.UnaryOp) -> Fact:
        fact = self(node.operand)
        if not isinstance(fact, Const):
            return UNKNOWN if isinstance(node.op, ast.Not) else NOT_NONE
        if isinstance(node.op, ast.Not):
            return Const(not fact.value)
        return Const(-fact.value) if isinstance(node.op, ast.USub) else UNKNOWN

    def _binop(self, node: ast.BinOp) -> Fact:
        left, right, apply = self(node.left), self(node.right), _BINARY.get(type(node.op))
        if isinstance(left, Const) and isinstance(right, Const) and apply:
            return _attempt(apply, left.value, right.value)
        return NOT_NONE

    def _compare(self, node: ast.Compare) -> Fact:
        if len(node.ops) != 1:
            return UNKNOWN
        left, right, kind = self(node.left), self(node.comparators[0]), node.ops[0]
        if isinstance(kind, ast.Is | ast.IsNot):
            same = _identical(left, right)
            return UNKNOWN if same is None else Const(same == isinstance(kind, ast.Is))
        if isinstance(left, Const) and isinstance(right, Const):
            return _attempt(_COMPARE[type(kind)], left.value, right.value)
        return UNKNOWN

    def _boolop(self, node: ast.BoolOp) -> Fact:
        stops = isinstance(node.op, ast.Or)
        facts = [self(v) for v in node.values]
        for fact in facts[:-1]:
            if not isinstance(fact, Const):
                settled = any(isinstance(f, Const) and isinstance(f.value, bool) and f.value is stops for f in facts)
                return Const(stops) if settled and _boolean_operands(node) else UNKNOWN
            if bool(fact.value) is stops:
                return fact
        return facts[-1]

    def _ifexp(self, node: ast.IfExp) -> Fact:
        test = self(node.test)
        if isinstance(test, Const):
            return self(node.body if test.value else node.orelse)
        return join([self(node.body), self(node.orelse)])

    def _subscript(self, node: ast.Subscript) -> Fact:
        held, index = self(node.value), self(node.slice)
        if isinstance(held, Const) and isinstance(index, Const):
            return _attempt(operator.getitem, held.value, index.value)
        return UNKNOWN

    def _call(self, node: ast.Call) -> Fact:
        if isinstance(node.func, ast.Name) and node.func.id in _BUILTINS and not node.keywords:
            facts = [self(a) for a in node.args]
            known = [f.value for f in facts if isinstance(f, Const)]
            if len(known) == len(facts):
                return _attempt(_BUILTINS[node.func.id], *known)
            return NOT_NONE
        if isinstance(node.func, ast.Attribute) and node.func.attr not in _MAY_GIVE_NONE | self.own_methods:
            return NOT_NONE  # tensor methods, torch functions and submodules return something
        return UNKNOWN


def truth(scopes: Iterable[Scope], test: ast.expr) -> bool | None:
    """Which way a test goes in all of these scopes; None when that varies or is not known."""
    facts = [scope(test) for scope in scopes]
    ways = {bool(f.value) if isinstance(f, Const) else None for f in facts}
    return ways.pop() if len(ways) == 1 else None


def _attempt(function: Callable[..., Any], *values: Any) -> Fact:
    try:
        result = function(*values)
    except (TypeError, ValueError, ArithmeticError, LookupError):  # left for run time to raise
        return UNKNOWN
    return Const(result) if is_plain(result) else UNKNOWN


def _identical(left: Fact, right: Fact) -> bool | None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Const) and one.value is None:
            if isinstance(other, Const):
                return other.value is None
            return False if other == NOT_NONE else None
    return None


def _boolean_operands(node: ast.BoolOp) -> bool:
    """Whether `and`/`or` yields a plain bool, so that a later settled operand settles the whole."""
    return all(isinstance(v, ast.Compare) or (isinstance(v, ast.UnaryOp) and isinstance(v.op, ast.Not))
               or (isinstance(v, ast.BoolOp) and _boolean_operands(v))
               or (isinstance(v, ast.Constant) and isinstance(v.value, bool)) for v in node.values)


@dataclass(frozen=True)
class Bindings:
    """What a function assigns. `limits`: for each name, the position up to which a parameter of that name still has
    its first value. `once`: names bound by exactly one plain `name = value`, in textual order."""

    limits: dict[str, tuple[int, int]]
    once: list[tuple[str, ast.expr]]


@lru_cache(maxsize=1024)
def _bindings(function: ast.FunctionDef) -> Bindings:
    return Bindings(_assignment_limits(function), _assigned_once(function))


def _assignments(function: ast.FunctionDef) -> dict[str, list[ast.AST]]:
    """Every node that binds a name inside the function, its own parameters aside."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.setdefault(node.id, []).append(node)
        elif isinstance(node, ast.FunctionDef | ast.Lambda) and node is not function:
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                found.setdefault(argument.arg, []).append(argument)
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.alias):
            found.setdefault((node.asname or node.name).split(".")[0], []).append(node)
    return found


def _assignment_limits(function: ast.FunctionDef) -> dict[str, tuple[int, int]]:
    """For each name bound inside: the position up to which a parameter of that name still has its first value.

    Inside a loop the back edge counts, so the limit is the start of the outermost loop.
    """
    limits: dict[str, tuple[int, int]] = {}

    def visit(node: ast.AST, limit: tuple[int, int] | None) -> None:
        if limit is None and isinstance(node, ast.For | ast.While | ast.AsyncFor | ast.ListComp | ast.GeneratorExp
                                        | ast.DictComp | ast.SetComp | ast.Lambda):
            limit = (node.lineno, node.col_offset)
        here = limit
        if here is None and isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            compound = hasattr(node, "body")
            here = (node.lineno, node.col_offset) if compound else (node.end_lineno or 0, node.end_col_offset or 0)
        for child in ast.iter_child_nodes(node):
            visit(child, limit)
            if isinstance(node, ast.stmt):
                for name in _stored_names(child):
                    limits[name] = min(limits.get(name, here or (0, 0)), here or (0, 0))

    visit(function, None)
    for name in _assignments(function):
        limits.setdefault(name, (0, 0))
    return limits


def _stored_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.stmt):
        return []
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store | ast.Del)]


def _assigned_once(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """Names bound by exactly one plain `name = value`, in textual order."""
    counts = {name: len(nodes) for name, nodes in _assignments(function).items()}
    statements = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and len(n.targets) == 1]
    found = [(s.targets[0].id, s) for s in statements if isinstance(s.targets[0], ast.Name)]
    found.sort(key=lambda pair: pair[1].lineno)
    return [(name, statement.value) for name, statement in found if counts[name] == 1]
