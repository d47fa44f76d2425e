"""Rewrite the parameter list of a `def`: leave parameters out, or take `| None = None` from one that never is None."""

from __future__ import annotations

import ast

from .program import defaults_of
from .text import LINE_LENGTH, Edit, Text

__all__ = ["drop_parameters", "narrow_optional"]


def drop_parameters(source: Text, function: ast.FunctionDef, dropped: set[str]) -> Edit:
    """The parameter list without some parameters; markers that then separate nothing go too."""
    return _rewritten(source, function, dropped, {})


def narrow_optional(source: Text, function: ast.FunctionDef, never_none: set[str]) -> Edit | None:
    """Strip `| None` and `= None` from parameters that always get a value; None where the order forbids it."""
    defaults, texts = defaults_of(function), {}
    positional = [*function.args.posonlyargs, *function.args.args]
    earlier_default = False
    for parameter in [*positional, *function.args.kwonlyargs]:
        default = defaults.get(parameter.arg)
        is_none = isinstance(default, ast.Constant) and default.value is None
        movable = parameter in function.args.kwonlyargs or not earlier_default
        if parameter.arg in never_none and is_none and movable:
            annotation = parameter.annotation
            texts[parameter.arg] = parameter.arg + (
                f": {_without_none(source, annotation)}" if annotation is not None else "")
        elif default is not None:
            earlier_default = True
    return _rewritten(source, function, set(), texts) if texts else None


def _without_none(source: Text, annotation: ast.expr) -> str:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        for side, other in ((annotation.left, annotation.right), (annotation.right, annotation.left)):
            if isinstance(side, ast.Constant) and side.value is None:
                return source.get(other)
    return source.get(annotation)


def _rewritten(source: Text, function: ast.FunctionDef, dropped: set[str], texts: dict[str, str]) -> Edit:
    arguments, defaults = function.args, defaults_of(function)
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]

    def item(parameter: ast.arg) -> str:
        if parameter.arg in texts:
            return texts[parameter.arg]
        text, default = source.get(parameter), defaults.get(parameter.arg)
        if default is None:
            return text
        return f"{text} = {source.get(default)}" if parameter.annotation else f"{text}={source.get(default)}"

    groups = [[item(p) for p in group if p.arg not in dropped]
              for group in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)]
    items = groups[0] + (["/"] if groups[0] else []) + groups[1] + (["*"] if groups[2] else []) + groups[2]
    start = source.text.index("(", source.span(function)[0]) + 1
    ends = [source.span(p)[1] for p in every] + [source.span(d)[1] for d in defaults.values()]
    end = source.text.index(")", max(ends))
    column = start - source.starts[function.lineno - 1]
    rest = source.text[end:source.text.index("\n", end)]
    return Edit(start, end, _wrapped(items, column, len(rest)))


def _wrapped(items: list[str], column: int, tail: int) -> str:
    """Items separated by commas, broken under the opening bracket where a line would be too long."""
    lines = [""]
    for i, item in enumerate(items):
        piece = item + ("," if i < len(items) - 1 else "")
        room = LINE_LENGTH - column - (tail if i == len(items) - 1 else 0)
        if lines[-1] and len(lines[-1]) + 1 + len(piece) > room:
            lines.append(piece)
        else:
            lines[-1] = f"{lines[-1]} {piece}".strip()
    return ("\n" + " " * column).join(lines)
