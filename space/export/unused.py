"""What nobody reads any more once branches are folded: names, attributes, methods, parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from .facts import NOT_NONE, PRESENT, Const, is_plain
from .program import PUBLIC_METHODS, Callee, Program, bind, defaults_of, parameters_of
from .signature import drop_parameters, narrow_optional
from .text import Edit, Text, nodes, without_items

__all__ = ["none_that_never_comes", "unread_parameters", "unused"]


def unused(program: Program, name: str) -> Iterator[Edit]:
    source, top = program.source[name], program.source[name].tree.body[0]
    for callee in program.callees(name):
        yield from _unread_inside(source, program.functions[callee])
    if isinstance(top, ast.ClassDef):
        for member in top.body:
            if isinstance(member, ast.FunctionDef) and _is_unused_method(program, member.name):
                yield source.removal(member, is_only=len(top.body) == 1)
        yield from _unread_attributes(program, name)


@lru_cache(maxsize=8192)
def _unread_inside(source: Text, function: ast.FunctionDef) -> tuple[Edit, ...]:
    """What a function binds and does not read."""
    return (*_unread_names(source, function), *_unread_in_loops(source, function))


def _is_unused_method(program: Program, method: str) -> bool:
    return method not in PUBLIC_METHODS and not method.startswith("__") and not program.attribute_uses[method]


def _unread_names(source: Text, function: ast.FunctionDef) -> Iterator[Edit]:
    read = {n.id for n in nodes(function) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
    for parent in nodes(function):
        blocks: list[Any] = [getattr(parent, "body", None), getattr(parent, "orelse", None)]
        for block in (b for b in blocks if isinstance(b, list)):
            for node in block:
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and _is_pure(node.value):
                    target = node.targets[0]
                    if isinstance(target, ast.Name) and target.id not in read:
                        yield source.removal(node, is_only=len(block) == 1)


def _unread_in_loops(source: Text, function: ast.FunctionDef) -> Iterator[Edit]:
    """`for a, b in zip(x, y, strict=True)` where nobody reads b."""
    read = {n.id for n in nodes(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for loop in nodes(function):
        if not isinstance(loop, ast.For | ast.comprehension) or not isinstance(loop.target, ast.Tuple):
            continue
        names, zipped = loop.target.elts, loop.iter
        if not (isinstance(zipped, ast.Call) and getattr(zipped.func, "id", "") == "zip" and len(zipped.args) == len(names)):
            continue
        kept = [i for i, n in enumerate(names) if not isinstance(n, ast.Name) or n.id in read]
        if len(kept) == 1:
            target, inner = source.get(names[kept[0]]), isinstance(names[kept[0]], ast.Tuple)
            yield Edit(*source.span(loop.target), target.strip("()") if inner else target)
            yield Edit(*source.span(zipped), source.get(zipped.args[kept[0]]))
        elif 1 < len(kept) < len(names):
            gone = set(range(len(names))) - set(kept)
            yield from without_items([source.span(n) for n in names], gone)
            yield from without_items([source.span(a) for a in (*zipped.args, *zipped.keywords)], gone)


def _is_pure(node: ast.expr) -> bool:
    calls = [n.func for n in nodes(node) if isinstance(n, ast.Call)]
    names = [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "_") for f in calls]
    return not any(name.endswith("_") for name in names)


def _unread_attributes(program: Program, name: str) -> Iterator[Edit]:
    """`self.x = number` that no method and nobody outside reads."""
    instances = program.chunks[name].instances
    init, source = program.functions.get((name, "__init__")), program.source[name]
    if init is None or not instances:
        return
    plain = {a for a in instances[0].attributes if all(is_plain(i.attributes.get(a, PRESENT)) for i in instances)}
    unread = {a for a in plain & program.stable[name] if not program.is_read(name, a)}
    for node in init.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        if _self_attribute(target) in unread:
            yield source.removal(node, is_only=len(init.body) == 1)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            gone = {i for i, t in enumerate(target.elts) if _self_attribute(t) in unread}
            if len(gone) == len(target.elts):
                yield source.removal(node, is_only=len(init.body) == 1)
            elif gone:
                yield from without_items([source.span(t) for t in target.elts], gone)
                yield from without_items([source.span(v) for v in value.elts], gone)


def _self_attribute(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def unread_parameters(program: Program, callee: Callee) -> dict[str, list[Edit]]:
    """Drop parameters the body no longer reads, here and at every call."""
    owner, name = callee
    function = program.functions[callee]
    if name != "__init__" and not program.closed(callee):
        return {}
    unread = {p.arg for p in parameters_of(function, bound=bool(owner)) if not _is_value_read(function, p.arg)}
    if not unread or function.args.vararg or function.args.kwarg:
        return {}
    if name == "__init__" and any(owner in program.family(c)[1:] for c, n in program.functions if n == "__init__"):
        return {}  # a subclass calls it through super()
    return _apply_drop(program, callee, unread)


def _is_value_read(function: ast.FunctionDef, parameter: str) -> bool:
    """Whether anything reads a parameter before the function's body, as a whole, gives the name another value."""
    for statement in function.body:
        uses = [n for n in nodes(statement) if isinstance(n, ast.Name) and n.id == parameter]
        if any(not isinstance(n.ctx, ast.Store) for n in uses):
            return True
        if uses:
            return not (isinstance(statement, ast.Assign) and any(t in uses for t in statement.targets))
    return False


def _apply_drop(program: Program, callee: Callee, unread: set[str]) -> dict[str, list[Edit]]:
    owner, name = callee
    home = owner or name
    function = program.functions[callee]
    edits: dict[str, list[Edit]] = {home: [drop_parameters(program.source[home], function, unread)]}
    for caller, call in program.calls[callee]:
        chunk = caller[0] or caller[1]
        source = program.source[chunk]
        bound = bind(call, function, bound=bool(owner)) or {}
        items = [*call.args, *call.keywords]
        gone_values = {id(bound[p]) for p in unread if p in bound}
        gone = {i for i, a in enumerate(items) if id(a.value if isinstance(a, ast.keyword) else a) in gone_values}
        edits.setdefault(chunk, []).extend(without_items([source.span(a) for a in items], gone))
    if name == "__init__":
        for instance in program.chunks[owner].instances:
            for parameter in unread:
                instance.arguments.pop(parameter, None)
    return edits


def none_that_never_comes(program: Program, callee: Callee) -> dict[str, list[Edit]]:
    """`x: int | None = None` becomes `x: int` where nobody passes None."""
    owner, name = callee
    function = program.functions[callee]
    if name in PUBLIC_METHODS and name != "__init__":
        return {}
    scopes = program.scopes(callee)
    never = set()
    for parameter in parameters_of(function, bound=bool(owner)):
        facts = [scope.parameters.get(parameter.arg) for scope in scopes]
        if facts and all(f == NOT_NONE or (isinstance(f, Const) and f.value is not None and is_plain(f.value))
                         for f in facts):
            never.add(parameter.arg)
    if not never & set(defaults_of(function)):
        return {}
    edit = narrow_optional(program.source[owner or name], function, never)
    return {owner or name: [edit]} if edit else {}
