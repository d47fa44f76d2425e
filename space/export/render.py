"""Constructor calls as text, on one line where they fit and one argument per line where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from .text import LINE_LENGTH

__all__ = ["Call", "render"]


@dataclass
class Call:
    """`name(arguments)`; an argument is a keyword or None, and its value. `spread` breaks it in any case."""

    name: str
    arguments: list[tuple[str | None, Call | str]] = field(default_factory=list)
    spread: bool = False


def render(call: Call | str, indent: int, used: int) -> str:
    """The text of a call that starts after `used` characters beyond `indent` on its line."""
    if isinstance(call, str):
        return call
    line = _line(call)
    if not call.spread and indent + used + len(line) + 1 <= LINE_LENGTH:
        return line
    lines = [f"{call.name}("]
    for keyword, value in call.arguments:
        head = f"{keyword}=" if keyword else ""
        lines.append(" " * (indent + 4) + head + render(value, indent + 4, len(head)) + ",")
    return "\n".join([*lines, " " * indent + ")"])


def _line(call: Call) -> str:
    parts = [(f"{k}=" if k else "") + (_line(v) if isinstance(v, Call) else v) for k, v in call.arguments]
    return f"{call.name}({', '.join(parts)})"
