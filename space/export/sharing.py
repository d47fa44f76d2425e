"""Take the hand-over between layers out of classes of a network whose layers hand nothing on."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .program import defaults_of
from .signature import drop_parameters
from .text import Edit, Text, apply, without_items

__all__ = ["without_sharing"]

NAME = "shared"


def without_sharing(text: str) -> str:
    """A class without its optional parameter `shared`: it is None in `forward` and `step`, and in what they call.

    What is left of it, tests of `None is not None`, folds away with the other options.
    """
    source = Text(text)
    return apply(text, [edit for node in ast.walk(source.tree) for edit in _edits(source, node)])


def _edits(source: Text, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Assign) and source.get(node.targets[0]) == "shares":
        blank = not source.lines[node.lineno].strip()                       # the line below sets it off from a method
        yield Edit(source.starts[node.lineno - 1], source.starts[node.lineno + blank])
    elif isinstance(node, ast.Call):
        passed = {i for i, a in enumerate(node.args) if isinstance(a, ast.Name) and a.id == NAME}
        if isinstance(node.func, ast.Attribute):
            yield from without_items([source.span(a) for a in (*node.args, *node.keywords)], passed)
        else:
            yield from (Edit(*source.span(node.args[i]), "None") for i in passed)
    elif isinstance(node, ast.FunctionDef) and isinstance(defaults_of(node).get(NAME), ast.Constant):
        yield drop_parameters(source, node, {NAME})
    elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == NAME:
        yield Edit(*source.span(node.left), "None")
