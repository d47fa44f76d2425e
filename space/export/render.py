"""Constructor calls as text, on one line where they fit and one argument per line where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from .text import LINE_LENGTH

__all__ = ["Call", "render"]


@dataclass
class Call:
    """`name(arguments)`; an argument is a keyword or None, and its value. `spread` breaks it in any case.

    Without a name and with other brackets it is a list, or a dict whose keys are the keywords.
    """

    name: str
    arguments: list[tuple[str | None, Call | str]] = field(default_factory=list)
    spread: bool = False
    brackets: str = "()"

    @property
    def is_spread(self) -> bool:
        """Whether it, or anything in it, is broken in any case."""
        return self.spread or any(isinstance(value, Call) and value.is_spread for _, value in self.arguments)

    def head(self, keyword: str | None) -> str:
        """What stands before a value."""
        if not keyword:
            return ""
        return f'"{keyword}": ' if self.brackets == "{}" else f"{keyword}="


def render(call: Call | str, indent: int, used: int) -> str:
    """The text of a call that starts after `used` characters beyond `indent` on its line."""
    if isinstance(call, str):
        return call
    line = _line(call)
    if not call.is_spread and indent + used + len(line) + 1 <= LINE_LENGTH:
        return line
    keyword, only = call.arguments[0] if len(call.arguments) == 1 else (None, "")
    if isinstance(only, Call) and not only.name:                     # a list alone shares the lines of the call's brackets
        head = f"{call.name}({call.head(keyword)}"
        return f"{head}{render(only, indent, used + len(head))})"
    lines = [call.name + call.brackets[0]]
    for keyword, value in call.arguments:
        head = call.head(keyword)
        lines.append(" " * (indent + 4) + head + render(value, indent + 4, len(head)) + ",")
    return "\n".join([*lines, " " * indent + call.brackets[1]])


def _line(call: Call) -> str:
    parts = [call.head(k) + (_line(v) if isinstance(v, Call) else v) for k, v in call.arguments]
    return f"{call.name}{call.brackets[0]}{', '.join(parts)}{call.brackets[1]}"
