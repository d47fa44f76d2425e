"""What layers hand on to one another (keys and values, an encoder's output): taken out of all classes that do without.

A class takes part when an instance of it stands below a module that starts a hand-over, such as layers with cross-layer
keys and values. Of the others the optional parameter `shared` goes; what is left, tests of `None is not None`, folds
away with the other options.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator

from torch import nn

from .program import Chunk, defaults_of, parameters_of
from .signature import drop_parameters
from .text import Edit, Text, apply, nodes, parsed, without_items

__all__ = ["NAME", "below", "hands_on_alone", "is_house", "keys_read", "without", "without_checks", "without_keys"]

NAME = "shared"


def below(starts: Iterable[nn.Module], *, passes_on: Collection[type],
          hides: Callable[[nn.Module, nn.Module], bool]) -> frozenset[type]:
    """The classes of modules below those that start a hand-over, as far as it is passed on; ancestors included.

    hides: whether a module passes nothing on to a part of it.
    """
    found: set[type] = set()

    def visit(module: nn.Module, owner: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                visit(child, owner)
            elif (getattr(child, "shares", False) or type(child) in passes_on) and not hides(owner, child):
                found.update(type(child).__mro__)
                visit(child, child)

    for start in starts:
        visit(start, start)
    return frozenset(found) - set(nn.Module.__mro__)


def without(text: str, name: str, functions: Collection[str], *, local: bool = False) -> str:
    """A definition without its optional parameter `name`, which is None; `functions` are called by their own name.

    local: the name may also be a variable, in a function without such a parameter.
    """
    while True:
        source = parsed(text)
        marks = [n for n in nodes(source.tree) if isinstance(n, ast.Assign) and source.get(n.targets[0]) == "shares"]
        edits = [_with_line_below(source, mark) for mark in marks if name == NAME]
        for function in nodes(source.tree):
            if isinstance(function, ast.FunctionDef) and (local or isinstance(defaults_of(function).get(name), ast.Constant)):
                edits += [edit for node in nodes(function) for edit in _edits(source, node, name, functions)]
        if not edits:
            return text
        text = apply(text, edits)


def _with_line_below(source: Text, mark: ast.Assign) -> Edit:
    """Without a class attribute and the blank line that sets it off."""
    is_blank = mark.lineno < len(source.lines) and not source.lines[mark.lineno].strip()
    return Edit(source.starts[mark.lineno - 1], source.starts[mark.lineno + is_blank])


def _edits(source: Text, node: ast.AST, name: str, functions: Collection[str]) -> Iterator[Edit]:
    def is_it(part: ast.AST) -> bool:
        return isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Load)

    if isinstance(node, ast.Call):
        passed = {i for i, a in enumerate(node.args) if is_it(a)}
        if isinstance(node.func, ast.Name) and node.func.id in functions:
            yield from (Edit(*source.span(node.args[i]), "None") for i in passed)
        else:
            yield from without_items([source.span(a) for a in (*node.args, *node.keywords)], passed)
    elif isinstance(node, ast.Tuple) and any(is_it(part) for part in node.elts):
        kept = [source.get(part) for part in node.elts if not is_it(part)]
        yield Edit(*source.span(node), f"({', '.join(kept)}{',' if len(kept) == 1 else ''})")
    elif isinstance(node, ast.FunctionDef) and isinstance(defaults_of(node).get(name), ast.Constant):
        yield drop_parameters(source, node, {name})
    elif isinstance(node, ast.IfExp) and is_it(node.orelse):             # what of it is passed on: nothing either way
        yield Edit(*source.span(node), "None")
    elif isinstance(node, ast.Compare) and is_it(node.left):
        yield Edit(*source.span(node.left), "None")


def without_checks(text: str) -> str:
    """Functions that take what layers hand on, without refusing it: in one architecture it always fits."""
    source, edits = Text(text), []
    for function in _takers(source):
        for node in ast.walk(function):
            if isinstance(node, ast.If) and not node.orelse and all(isinstance(s, ast.Raise) for s in node.body):
                edits.append(source.removal(node))
        first = function.body[0]
        words = ast.get_docstring(function, clean=False)
        if words is not None and "\n\n" in words and words.split("\n\n", 1)[1].lstrip().startswith("Raises"):
            edits.append(Edit(*source.span(first), f'"""{words.split(chr(10) + chr(10), 1)[0]}"""'))
    return apply(text, edits)


def _takers(source: Text) -> list[ast.FunctionDef]:
    functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)]
    return [f for f in functions if any(p.arg == NAME for p in parameters_of(f, bound=False))]


def keys_read(chunks: Iterable[Chunk]) -> frozenset[str] | None:
    """The names under which anybody looks something up in what is handed on; None where somebody may look at all."""
    read: set[str] = set()
    for chunk in chunks:
        for function in _takers(parsed(chunk.text)):
            plain: set[int] = set()
            for node in nodes(function):
                for part, names in _look_ups(node):
                    plain.add(id(part))
                    read |= names
            uses = [n for n in nodes(function) if _is_shared(n) and id(n) not in plain]
            if uses and not is_house(chunk):
                return None
    return frozenset(read)


def _look_ups(node: ast.AST) -> Iterator[tuple[ast.AST, set[str]]]:
    """The uses of what is handed on that read nothing, or what stands under one name, with that name."""
    if isinstance(node, ast.Subscript) and _is_shared(node.value) and _constants([node.slice]):
        yield node.value, _constants([node.slice]) if isinstance(node.ctx, ast.Load) else set()
    elif isinstance(node, ast.Call):
        method = node.func.attr if isinstance(node.func, ast.Attribute) and _is_shared(node.func.value) else ""
        if method in ("get", "setdefault") and isinstance(node.func, ast.Attribute):
            yield node.func.value, _constants(node.args[:1]) if method == "get" else set()
        yield from ((argument, set()) for argument in node.args)
    elif isinstance(node, ast.Compare):
        yield from ((part, _constants([node.left])) for part in node.comparators if _is_shared(part))
        if isinstance(node.ops[0], ast.Is | ast.IsNot):
            yield node.left, set()


def is_house(chunk: Chunk) -> bool:
    """Whether a definition is this package's."""
    return chunk.home.split(".")[0] == __name__.split(".")[0]


def _is_shared(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == NAME and isinstance(node.ctx, ast.Load)


def _constants(nodes: Iterable[ast.expr]) -> set[str]:
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def without_keys(text: str, read: Collection[str]) -> str:
    """A definition that leaves nothing under a name that is never read."""
    source, edits = Text(text), []
    for parent in ast.walk(source.tree):
        for block in (getattr(parent, "body", None), getattr(parent, "orelse", None)):
            statements = block if isinstance(block, list) else []
            gone = [s for s in statements if _left(s) not in (None, *read)]
            if isinstance(parent, ast.If) and len(gone) == len(statements) and block is parent.body and not parent.orelse:
                edits += [source.removal(parent)] if gone else []
            else:
                edits += [source.removal(s) for s in gone]
    return apply(text, edits)


def _left(statement: ast.AST) -> str | None:
    """The name under which a statement leaves something: `shared[name] = ...`, `shared.setdefault(name, ...)`."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
        target = statement.targets[0]
        return next(iter(_constants([target.slice])), None) if _is_shared(target.value) else None
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "setdefault":
        return None
    return next(iter(_constants(call.args[:1])), None) if _is_shared(call.func.value) else None


def hands_on_alone(text: str) -> bool:
    """Whether a class does nothing with `shared` but pass it to its own methods."""
    tree = ast.parse(text)
    passed = {id(a) for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
              and isinstance(n.func.value, ast.Name) and n.func.value.id == "self" for a in n.args}
    return all(id(n) in passed for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == NAME)
