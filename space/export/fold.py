"""Specialise source to one architecture: fold branches that never vary, drop options nobody uses.

Every edit keeps the operations that run and their order, so results stay equal bit for bit. A number stays a visible
parameter; a switch (None, bool or string) that has one value everywhere disappears with the branches it chose between.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from .facts import Const, Fact, Scope, join, truth
from .program import Chunk, Program, reads
from .text import Edit, Text, apply, join_short_statements, without_items
from .unused import none_that_never_comes, unread_parameters, unused

__all__ = ["reachable", "specialise"]

MOST_ROUNDS = 200


def specialise(chunks: dict[str, Chunk], roots: list[str]) -> dict[str, Chunk]:
    """Edit the chunks until nothing more folds; returns those that `roots` still reach, definitions first."""
    quiet: set[Hashable] = set()
    for _ in range(MOST_ROUNDS):
        chunks = reachable(chunks, roots)
        program = Program(chunks)
        edits = _folds(program, quiet) or _first_edits(program)
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
        for used in reads(chunks[name].text).names:
            if used in chunks:
                visit(used)
        ordered[name] = chunks[name]

    for root in roots:
        visit(root)
    return ordered


def _folds(program: Program, quiet: set[Hashable]) -> dict[str, list[Edit]]:
    """The edits that fold, by chunk; `quiet` remembers for which chunks there were none."""
    found = {}
    for name in program.chunks:
        signature = program.signature(name)
        if signature not in quiet:
            found[name] = list(_fold(program, name))
            if not found[name]:
                quiet.add(signature)
    return {name: changes for name, changes in found.items() if changes}


def _first_edits(program: Program) -> dict[str, list[Edit]]:
    """The edits of the first pass that finds any; later passes rely on the earlier ones being done."""
    edits = {name: changes for name in program.chunks if (changes := list(unused(program, name)))}
    if edits:
        return edits
    for callee in program.functions:
        for change in (unread_parameters, none_that_never_comes):
            edits = change(program, callee)
            if edits:
                return edits
    return {}


def _fold(program: Program, name: str) -> Iterator[Edit]:
    for callee in program.callees(name):
        fold = _Fold(program, program.source[name], program.scopes(callee))
        yield from fold.block(program.functions[callee].body)


@dataclass(frozen=True)
class _Fold:
    """The edits that fold one function. `scopes` are those of the instances that can reach the code at hand."""

    program: Program
    source: Text
    scopes: list[Scope]

    def fact(self, node: ast.expr) -> Fact:
        return join(scope(node) for scope in self.scopes)

    def where(self, test: ast.expr, taken: bool) -> _Fold:
        """The same, for the instances that may go this way at a test."""
        reach = [s for s in self.scopes if truth([s], test) is not (not taken)]
        return replace(self, scopes=reach or self.scopes)

    def block(self, body: list[ast.stmt]) -> Iterator[Edit]:
        dead = _after_exit(self.source, body)
        if dead is not None:
            yield dead
        for statement in body:
            yield from self.statement(statement, is_only=len(body) == 1)
            if isinstance(statement, ast.Return | ast.Raise):
                return

    def statement(self, statement: ast.stmt, *, is_only: bool) -> Iterator[Edit]:
        if isinstance(statement, ast.If):
            yield from self.branch(statement, is_only=is_only)
            return
        if isinstance(statement, ast.Assert) and truth(self.scopes, statement.test):
            yield self.source.removal(statement, is_only=is_only)
            return
        for part in ast.iter_child_nodes(statement):
            if isinstance(part, ast.expr) and part is not getattr(statement, "annotation", None):
                yield from self.expression(part)
        for block in ("body", "orelse", "finalbody"):
            yield from self.block(getattr(statement, block, []))

    def branch(self, statement: ast.If, *, is_only: bool) -> Iterator[Edit]:
        taken = truth(self.scopes, statement.test)
        if taken is not None:
            yield _fold_if(self.source, statement, taken, is_only=is_only)
            return
        yield from self.expression(statement.test, is_test=True)
        yield from self.where(statement.test, True).block(statement.body)
        yield from self.where(statement.test, False).block(statement.orelse)

    def expression(self, node: ast.expr, *, is_test: bool = False) -> Iterator[Edit]:
        """Edits inside one expression; the widest that applies wins, its inside waits for the next round."""
        if isinstance(node, ast.JoinedStr | ast.Constant):
            return  # positions inside f-strings are not reliable before Python 3.12
        replacement = self.replacement(node, is_test=is_test)
        if replacement is not None:
            yield replacement
            return
        if isinstance(node, ast.Call):
            items = [*node.args, *node.keywords]
            empty = {i for i, a in enumerate(items) if isinstance(a, ast.Starred) and self.fact(a.value) == Const(())}
            if empty:
                yield from without_items([self.source.span(a) for a in items], empty)
                return
        if isinstance(node, ast.IfExp):
            yield from self.expression(node.test, is_test=True)
            yield from self.where(node.test, True).expression(node.body)
            yield from self.where(node.test, False).expression(node.orelse)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from self.expression(child)
            elif isinstance(child, ast.keyword):
                yield from self.expression(child.value)
            elif isinstance(child, ast.comprehension):
                for part in (child.iter, *child.ifs):
                    yield from self.expression(part)

    def replacement(self, node: ast.expr, *, is_test: bool) -> Edit | None:
        fact = self.fact(node)
        if _is_switch(fact) and self.reads_switch(node):
            assert isinstance(fact, Const)
            return _replace(self.source, node, _literal(fact.value), node)
        if isinstance(node, ast.IfExp):
            taken = truth(self.scopes, node.test)
            if taken is not None:
                chosen = node.body if taken else node.orelse
                return _replace(self.source, node, self.source.get(chosen), chosen)
        if isinstance(node, ast.BoolOp):
            return self.shorter(node, is_test=is_test)
        if isinstance(node, ast.Subscript):
            return self.looked_up(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            attribute = self.fact(node.args[1])
            if len(node.args) == 2 and isinstance(attribute, Const) and _is_atom(node.args[0]):
                return _replace(self.source, node, f"{self.source.get(node.args[0])}.{attribute.value}", node)
        return None

    def reads_switch(self, node: ast.expr) -> bool:
        """Whether the expression reads a name that stands for one None, bool or string everywhere."""
        for part in ast.walk(node):
            named = isinstance(part, ast.Name | ast.Attribute) and isinstance(part.ctx, ast.Load)
            if named and _is_switch(self.fact(part)):  # type: ignore[arg-type]
                return True
        return False

    def shorter(self, node: ast.BoolOp, *, is_test: bool) -> Edit | None:
        """`and` / `or` without the operands that never decide."""
        stops = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for i, value in enumerate(node.values):
            way, is_last = truth(self.scopes, value), i == len(node.values) - 1
            if way is (not stops) and (not is_last or (is_test and kept)):
                continue
            kept.append(value)
            if way is stops:
                break
        if len(kept) == len(node.values):
            return None
        if len(kept) == 1 and not isinstance(kept[0], ast.IfExp | ast.Lambda | ast.BoolOp):
            return _replace(self.source, node, self.source.get(kept[0]), kept[0])
        weaker = (ast.BoolOp, ast.IfExp, ast.Lambda)
        texts = [f"({self.source.get(v)})" if isinstance(v, weaker) else self.source.get(v) for v in kept]
        return _replace(self.source, node, (" or " if stops else " and ").join(texts), node)

    def looked_up(self, node: ast.Subscript) -> Edit | None:
        """`{"gelu": F.gelu, ...}[activation]`, written out or as a constant of the file, becomes the entry."""
        key, table, home = self.fact(node.slice), node.value, self.source
        if isinstance(table, ast.Name) and table.id in self.program.constants:
            home = self.program.source[table.id]
            table = getattr(home.tree.body[0], "value", table)
        if not isinstance(key, Const) or not isinstance(table, ast.Dict):
            return None
        for k, value in zip(table.keys, table.values, strict=True):
            if isinstance(k, ast.Constant) and k.value == key.value:
                text = home.get(value)
                return _replace(self.source, node, text if _is_atom(value) else f"({text})", value)
        return None


def _after_exit(source: Text, body: list[ast.stmt]) -> Edit | None:
    """What follows a `return` or `raise` in its block."""
    for statement in body[:-1]:
        if isinstance(statement, ast.Return | ast.Raise):
            last = body[-1].end_lineno
            assert last is not None and statement.end_lineno is not None
            return Edit(source.starts[statement.end_lineno], source.starts[last])
    return None


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


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _is_switch(fact: Fact) -> bool:
    """None, a bool or a string; a number is a size and stays a name."""
    return isinstance(fact, Const) and (fact.value is None or isinstance(fact.value, bool | str))


def _is_atom(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Constant | ast.Subscript)


_BEFORE = re.compile(r"(^|[=(\[,]|\b(and|or|not|if|elif|else|while|return|assert|in))$")
_AFTER = re.compile(r"$|[:)\],\n]|(and|or|if|else|for)\b")


def _replace(source: Text, node: ast.expr, text: str, chosen: ast.expr) -> Edit:
    """Replace an expression, and the parentheses around it where they no longer do anything."""
    start, end = source.span(node)
    before, after = source.text[:start].rstrip(), source.text[end:].lstrip()
    if before.endswith("(") and after.startswith(")"):
        outside = before[:-1]
        called = bool(outside) and (outside[-1].isalnum() or outside[-1] in "_)]")
        alone = bool(_BEFORE.search(outside.rstrip(" "))) and bool(_AFTER.match(after[1:].lstrip(" ")))
        tight = _is_atom(chosen) or (alone and isinstance(chosen, ast.Compare) and "\n" not in text)
        if not called and tight:
            return Edit(len(outside), len(source.text) - len(after) + 1, text)
    return Edit(start, end, text)
