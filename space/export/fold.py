"""Specialise source to one architecture: fold branches that never vary, drop options nobody uses.

Every edit keeps the operations that run and their order, so results stay equal bit for bit. A number stays a visible
parameter; a switch (None, bool or string) that has one value everywhere disappears with the branches it chose between.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

from .facts import NOT_NONE, PRESENT, Const, Fact, is_plain
from .program import PUBLIC_METHODS, Callee, Chunk, Program, bind, defaults_of, parameters_of
from .signature import drop_parameters, narrow_optional
from .text import Edit, Text, apply, join_short_statements, without_items

__all__ = ["reachable", "specialise"]

MOST_ROUNDS = 200


def specialise(chunks: dict[str, Chunk], roots: list[str]) -> dict[str, Chunk]:
    """Edit the chunks until nothing more folds; returns those that `roots` still reach, definitions first."""
    for _ in range(MOST_ROUNDS):
        chunks = reachable(chunks, roots)
        program = Program(chunks)
        edits = _first_edits(program)
        if not edits:
            break
        for name, changes in edits.items():
            chunks[name].text = apply(chunks[name].text, changes)
    for chunk in chunks.values():
        chunk.text = join_short_statements(chunk.text, chunk.original)
    return chunks


def reachable(chunks: dict[str, Chunk], roots: list[str]) -> dict[str, Chunk]:
    """The chunks that `roots` use, directly or not, each after what it uses."""
    ordered: dict[str, Chunk] = {}
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in ordered or name in visiting:
            return
        visiting.add(name)
        for node in ast.walk(ast.parse(chunks[name].text)):
            if isinstance(node, ast.Name) and node.id in chunks:
                visit(node.id)
        ordered[name] = chunks[name]

    for root in roots:
        visit(root)
    return ordered


def _first_edits(program: Program) -> dict[str, list[Edit]]:
    """The edits of the first pass that finds any; later passes rely on the earlier ones being done."""
    for find in (_fold, _unused):
        edits = {name: list(find(program, name)) for name in program.chunks}
        if any(edits.values()):
            return {name: changes for name, changes in edits.items() if changes}
    for callee in program.functions:
        for change in (_unread_parameters, _none_that_never_comes):
            edits = change(program, callee)
            if edits:
                return edits
    return {}


def _callees(program: Program, name: str) -> Iterator[Callee]:
    return (callee for callee in program.functions if (callee[0] or callee[1]) == name)


# -- folding ----------------------------------------------------------------------------------------------------------

def _fold(program: Program, name: str) -> Iterator[Edit]:
    source = program.source[name]
    for callee in _callees(program, name):
        function = program.functions[callee]
        yield from _fold_block(program, source, callee, function.body)


def _fold_block(program: Program, source: Text, callee: Callee, body: list[ast.stmt]) -> Iterator[Edit]:
    for i, statement in enumerate(body):
        if isinstance(statement, ast.Return | ast.Raise) and i + 1 < len(body):
            last = body[-1].end_lineno
            assert last is not None and statement.end_lineno is not None
            yield Edit(source.starts[statement.end_lineno], source.starts[last])
            body = body[:i + 1]
            break
    for statement in body:
        if isinstance(statement, ast.If):
            taken = program.truth(callee, statement.test)
            if taken is not None:
                yield _fold_if(source, statement, taken, is_only=len(body) == 1)
                continue
        if isinstance(statement, ast.Assert) and program.truth(callee, statement.test):
            yield source.removal(statement, is_only=len(body) == 1)
            continue
        for part in ast.iter_child_nodes(statement):
            if isinstance(part, ast.expr) and part is not getattr(statement, "annotation", None):
                yield from _fold_expression(program, source, callee, part, is_test=isinstance(statement, ast.If))
        for block in ("body", "orelse", "finalbody"):
            yield from _fold_block(program, source, callee, getattr(statement, block, []))


def _fold_if(source: Text, node: ast.If, taken: bool, *, is_only: bool) -> Edit:
    assert node.end_lineno is not None
    start = source.span(node)[0]
    header = source.lines[node.lineno - 1]
    line_start, end = source.starts[node.lineno - 1], source.starts[node.end_lineno]
    is_elif = source.text.startswith("elif", start)
    if taken:
        block = source.block(node.body, _header_end(source, node), node.col_offset + 4 * is_elif)
        indent = " " * node.col_offset
        return Edit(line_start, end, f"{indent}else:\n{block}" if is_elif else block)
    if not node.orelse:
        return source.removal(node, is_only=is_only)
    follows = node.orelse[0]
    other = source.span(follows)[0]
    if isinstance(follows, ast.If) and source.text.startswith("elif", other):
        keyword = "elif" if is_elif else "if"
        return Edit(line_start, end, header[:node.col_offset] + keyword + source.text[other + 4:end])
    otherwise = _else_line(source, node)
    if is_elif:
        return Edit(line_start, end, "".join(source.lines[otherwise - 1:node.end_lineno]))
    return Edit(line_start, end, source.block(node.orelse, otherwise, node.col_offset))


def _header_end(source: Text, node: ast.If) -> int:
    """The line of the colon that ends `if test:`."""
    assert node.test.end_lineno is not None
    line = node.test.end_lineno
    while line < node.body[0].lineno and ":" not in source.lines[line - 1].split("#")[0]:
        line += 1
    return line


def _else_line(source: Text, node: ast.If) -> int:
    line = node.orelse[0].lineno
    while not source.lines[line - 1].lstrip().startswith("else"):
        line -= 1
    return line


def _fold_expression(program: Program, source: Text, callee: Callee, node: ast.expr, *,
                     is_test: bool = False) -> Iterator[Edit]:
    """Edits inside one expression; the widest that applies wins, its inside waits for the next round."""
    if isinstance(node, ast.JoinedStr | ast.Constant):
        return  # positions inside f-strings are not reliable before Python 3.12
    replacement = _replacement(program, source, callee, node, is_test=is_test)
    if replacement is not None:
        yield replacement
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _fold_expression(program, source, callee, child)
        elif isinstance(child, ast.keyword):
            yield from _fold_expression(program, source, callee, child.value)
        elif isinstance(child, ast.comprehension):
            for part in (child.iter, *child.ifs):
                yield from _fold_expression(program, source, callee, part)


def _replacement(program: Program, source: Text, callee: Callee, node: ast.expr, *, is_test: bool) -> Edit | None:
    fact = program.fact(callee, node)
    if _is_switch(fact) and _reads_switch(program, callee, node):
        assert isinstance(fact, Const)
        return _replace(source, node, _literal(fact.value), is_atom=True)
    if isinstance(node, ast.IfExp):
        taken = program.truth(callee, node.test)
        if taken is not None:
            chosen = node.body if taken else node.orelse
            return _replace(source, node, source.get(chosen), is_atom=_is_atom(chosen))
    if isinstance(node, ast.BoolOp):
        return _shorter_boolop(program, source, callee, node, is_test=is_test)
    if isinstance(node, ast.Subscript):
        return _looked_up(program, source, callee, node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        attribute = program.fact(callee, node.args[1])
        if len(node.args) == 2 and isinstance(attribute, Const) and _is_atom(node.args[0]):
            return _replace(source, node, f"{source.get(node.args[0])}.{attribute.value}", is_atom=True)
    return None


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _reads_switch(program: Program, callee: Callee, node: ast.expr) -> bool:
    """Whether the expression reads a name that stands for one None, bool or string everywhere."""
    for part in ast.walk(node):
        named = isinstance(part, ast.Name | ast.Attribute) and isinstance(part.ctx, ast.Load)
        if named and _is_switch(program.fact(callee, part)):  # type: ignore[arg-type]
            return True
    return False


def _is_switch(fact: Fact) -> bool:
    """None, a bool or a string; a number is a size and stays a name."""
    return isinstance(fact, Const) and (fact.value is None or isinstance(fact.value, bool | str))


def _is_atom(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Constant | ast.Subscript)


def _replace(source: Text, node: ast.expr, text: str, *, is_atom: bool) -> Edit:
    """Replace an expression, and the parentheses around it where they no longer do anything."""
    start, end = source.span(node)
    before, after = source.text[:start].rstrip(), source.text[end:].lstrip()
    wrapped = before.endswith("(") and after.startswith(")")
    if wrapped and is_atom and not (before[-2:-1].isalnum() or before[-2:-1] in "_)]"):
        return Edit(len(before) - 1, len(source.text) - len(after) + 1, text)
    return Edit(start, end, text)


def _shorter_boolop(program: Program, source: Text, callee: Callee, node: ast.BoolOp, *, is_test: bool) -> Edit | None:
    stops = isinstance(node.op, ast.Or)
    kept = []
    for i, value in enumerate(node.values):
        way, is_last = program.truth(callee, value), i == len(node.values) - 1
        if way is (not stops) and (not is_last or (is_test and kept)):
            continue
        kept.append(value)
        if way is stops:
            break
    if len(kept) == len(node.values):
        return None
    if len(kept) == 1 and _is_atom(kept[0]):
        return _replace(source, node, source.get(kept[0]), is_atom=True)
    weaker = (ast.BoolOp, ast.IfExp, ast.Lambda)
    texts = [f"({source.get(v)})" if isinstance(v, weaker) else source.get(v) for v in kept]
    return _replace(source, node, (" or " if stops else " and ").join(texts), is_atom=False)


def _looked_up(program: Program, source: Text, callee: Callee, node: ast.Subscript) -> Edit | None:
    """`{"gelu": F.gelu, ...}[activation]`, written out or as a constant of the file, becomes the entry."""
    key = program.fact(callee, node.slice)
    table, home = node.value, source
    if isinstance(table, ast.Name) and table.id in program.constants:
        home = program.source[table.id]
        table = getattr(home.tree.body[0], "value", table)
    if not isinstance(key, Const) or not isinstance(table, ast.Dict):
        return None
    for k, value in zip(table.keys, table.values, strict=True):
        if isinstance(k, ast.Constant) and k.value == key.value:
            text = home.get(value)
            return _replace(source, node, text if _is_atom(value) else f"({text})", is_atom=_is_atom(value))
    return None


# -- what nobody reads any more ---------------------------------------------------------------------------------------

def _unused(program: Program, name: str) -> Iterator[Edit]:
    source, top = program.source[name], program.source[name].tree.body[0]
    for callee in _callees(program, name):
        yield from _unread_names(source, program.functions[callee])
    if isinstance(top, ast.ClassDef):
        for member in top.body:
            if isinstance(member, ast.FunctionDef) and _is_unused_method(program, member.name):
                yield source.removal(member, is_only=len(top.body) == 1)
        yield from _unread_attributes(program, name)


def _is_unused_method(program: Program, method: str) -> bool:
    return method not in PUBLIC_METHODS and not method.startswith("__") and method not in program.attributes_read


def _unread_names(source: Text, function: ast.FunctionDef) -> Iterator[Edit]:
    read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
    for parent in ast.walk(function):
        for block in (getattr(parent, "body", None), getattr(parent, "orelse", None)):
            for node in block if isinstance(block, list) else []:
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and _is_pure(node.value):
                    target = node.targets[0]
                    if isinstance(target, ast.Name) and target.id not in read:
                        yield source.removal(node, is_only=len(block) == 1)


def _is_pure(node: ast.expr) -> bool:
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    names = [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "_") for f in calls]
    return not any(name.endswith("_") for name in names)


def _unread_attributes(program: Program, name: str) -> Iterator[Edit]:
    """`self.x = number` that no method and nobody outside reads."""
    instances = program.chunks[name].instances
    init, source = program.functions.get((name, "__init__")), program.source[name]
    if init is None or not instances:
        return
    plain = {a for a in instances[0].attributes if all(is_plain(i.attributes.get(a, PRESENT)) for i in instances)}
    unread = {a for a in plain & program.stable_attributes(name) if not _is_read(program, name, a)}
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


def _is_read(program: Program, name: str, attribute: str) -> bool:
    related = {n for c in program.chunks if program.chunks[c].kind == "class" and name in program.family(c)
               for n in program.family(c)}
    for chunk, source in program.source.items():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, ast.Load):
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                if not own or chunk in related:
                    return True
    return False


# -- signatures -------------------------------------------------------------------------------------------------------

def _unread_parameters(program: Program, callee: Callee) -> dict[str, list[Edit]]:
    """Drop parameters the body no longer reads, here and at every call."""
    owner, name = callee
    function = program.functions[callee]
    if name != "__init__" and not program.closed(callee):
        return {}
    inner = [n for statement in function.body for n in ast.walk(statement)]
    read = {n.id for n in inner if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
    kept_back = {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    unread = {p.arg for p in parameters_of(function, bound=bool(owner))} - read - kept_back
    if not unread or function.args.vararg or function.args.kwarg:
        return {}
    if name == "__init__" and any(owner in program.family(c)[1:] for c, n in program.functions if n == "__init__"):
        return {}  # a subclass calls it through super()
    return _apply_drop(program, callee, unread)


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


def _none_that_never_comes(program: Program, callee: Callee) -> dict[str, list[Edit]]:
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
