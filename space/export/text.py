"""Source text edited at syntax-tree positions, so that comments, spacing and shape-suffix names survive."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["LINE_LENGTH", "Edit", "Text", "apply", "join_short_statements", "nodes", "parsed", "without_items"]

LINE_LENGTH = 120
Span = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """Replace the characters [start, end) by `text`."""

    start: int
    end: int
    text: str = ""


@lru_cache(maxsize=8192)
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Every node of a definition or statement, remembered: most of them stay as they are from round to round."""
    return tuple(ast.walk(tree))


class Text:
    """A parsed piece of Python with character offsets (the syntax tree counts UTF-8 bytes)."""

    def __init__(self, text: str):
        self.text = text
        self.tree: ast.Module = ast.parse(text)
        self.lines = [line + "\n" for line in text.split("\n")]  # splitlines would also break at form feeds
        self.lines[-1] = self.lines[-1][:-1]
        self.starts: list[int] = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def offset(self, lineno: int, column: int) -> int:
        line = self.lines[lineno - 1] if lineno <= len(self.lines) else ""
        return self.starts[lineno - 1] + len(line.encode()[:column].decode())

    def span(self, node: ast.AST) -> Span:
        """Where an expression, statement or argument stands, decorators not counted."""
        assert isinstance(node, ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias)
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def get(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def first_line(self, statement: ast.stmt) -> int:
        """The first line of a statement with its decorators and the comment lines directly above it."""
        line: int = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        while line > 1 and self.lines[line - 2].lstrip().startswith("#"):
            line -= 1
        return line

    def removal(self, statement: ast.stmt, *, is_only: bool = False) -> Edit:
        """Delete whole lines of a statement; the only one of its block leaves `pass` behind."""
        assert statement.end_lineno is not None
        first = self.first_line(statement)
        last = statement.end_lineno
        if isinstance(statement, ast.FunctionDef):  # the blank lines that set it off go with it
            while first > 1 and not self.lines[first - 2].strip():
                first -= 1
        replacement = " " * statement.col_offset + "pass\n" if is_only else ""
        return Edit(self.starts[first - 1], self.starts[last], replacement)

    def block(self, body: list[ast.stmt], after_line: int, indent: int) -> str:
        """The lines of a block, comments above its first statement included, moved to `indent`."""
        last = body[-1].end_lineno
        assert last is not None
        if body[0].lineno <= after_line:  # `if test: statement` on one line
            start, end = self.span(body[0])[0], self.span(body[-1])[1]
            return " " * indent + self.text[start:end] + "\n"
        shift = body[0].col_offset - indent
        lines = self.lines[after_line:last]
        return "".join(line[shift:] if line[:shift].isspace() and line.strip() else line for line in lines)


@lru_cache(maxsize=4096)
def parsed(text: str) -> Text:
    """Most pieces stay as they are from round to round."""
    return Text(text)


def apply(text: str, edits: Iterable[Edit]) -> str:
    """Apply edits; one that lies inside an earlier, wider one is left for the next round."""
    kept: list[Edit] = []
    for edit in sorted(set(edits), key=lambda e: (e.start, -e.end)):
        if not kept or edit.start >= kept[-1].end:
            kept.append(edit)
    for edit in reversed(kept):
        text = text[:edit.start] + edit.text + text[edit.end:]
    return text


def without_items(spans: list[Span], dropped: set[int]) -> list[Edit]:
    """Delete items of a comma-separated list, each with the comma that sets it off."""
    kept = [i for i in range(len(spans)) if i not in dropped]
    if not kept:
        return [Edit(spans[0][0], spans[-1][1])] if dropped else []
    edits = []
    for i in sorted(dropped):
        later = [k for k in kept if k > i]
        if later:
            edits.append(Edit(spans[i][0], spans[i + 1][0]))
        else:
            edits.append(Edit(spans[max(kept)][1], spans[-1][1]))
    return edits


def join_short_statements(text: str, original: str) -> str:
    """Put a shortened statement or `def` header back on one line where it fits, unless it holds a comment.

    What stands line for line in `original` stays as its author broke it.
    """
    source, untouched = Text(text), _stripped(original.splitlines())
    edits = []
    for node in ast.walk(source.tree):
        span = _header_lines(node)
        if span is None or span[0] == span[1]:
            continue
        lines = source.lines[span[0] - 1:span[1]]
        joined = None if _stripped(lines) in untouched else _joined(lines)
        if joined is not None and len(joined) <= LINE_LENGTH:
            edits.append(Edit(source.starts[span[0] - 1], source.starts[span[1]], joined + "\n"))
    return apply(text, edits)


def _stripped(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines)


def _header_lines(node: ast.AST) -> tuple[int, int] | None:
    if isinstance(node, ast.FunctionDef):
        last = max([node.lineno] + [n.end_lineno or 0 for n in ast.walk(node.args) if hasattr(n, "end_lineno")]
                   + ([node.returns.end_lineno or 0] if node.returns else []))
        return (node.lineno, last) if node.body[0].lineno > last else None
    simple = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Expr, ast.Assert, ast.Raise)
    if isinstance(node, simple) and node.end_lineno is not None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return None
        return node.lineno, node.end_lineno
    return None


def _joined(lines: list[str]) -> str | None:
    body = textwrap.dedent("".join(lines))
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(body).readline))
    except (tokenize.TokenError, IndentationError):  # a header without its body ends inside an indent
        return None
    multiline = any(t.type == tokenize.STRING and t.start[0] != t.end[0] for t in tokens)
    if multiline or any(t.type == tokenize.COMMENT for t in tokens):
        return None
    pieces = [line.strip() for line in lines]
    joined = pieces[0]
    for piece in pieces[1:]:
        if piece[:1] in ")]}":
            joined = joined.rstrip(", ") + piece  # a one-tuple is never broken after its comma in this house
        else:
            joined += ("" if joined[-1:] in "([{" else " ") + piece
    indent = len(lines[0]) - len(lines[0].lstrip())
    return " " * indent + joined
