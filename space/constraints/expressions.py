"""What a constraint is written in: expressions over decisions, counts over layers and costs.

An expression is a small tree that knows how to evaluate itself, to write itself as text, and to write itself as JSON.
Its leaves say what is read; `binding` finds where in a space that stands. None means "no limit": in arithmetic and in
`<`, `<=`, `>`, `>=` it reads as infinity (a window of None is full attention); it equals None alone. What reads something
that an architecture does not have raises `Absent`, and the constraint then holds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Absent", "Arithmetic", "Comparison", "Condition", "Constant", "Expression", "Logic", "Read", "as_expression",
           "as_number", "leaves", "text_of"]

Read = Callable[["Expression"], Any]

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow}
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
EQUALITY: dict[str, Callable[[Any, Any], bool]] = {"==": operator.eq, "!=": operator.ne}
BINDING = {"or": 0, "and": 1, "not": 2, "+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "**": 6}     # comparisons: 3


class Absent(Exception):
    """Something read is not in this architecture."""


def _joined(op: str) -> Callable[[Expression, Any], Arithmetic]:
    """The method for `self op other`."""
    return lambda self, other: Arithmetic(op, self, as_expression(other))


def _joined_from_right(op: str) -> Callable[[Expression, Any], Arithmetic]:
    """The method for `other op self`."""
    return lambda self, other: Arithmetic(op, as_expression(other), self)


def _compared(op: str) -> Callable[[Expression, Any], Comparison]:
    """The method for a comparison."""
    return lambda self, other: Comparison(op, self, as_expression(other))


class Expression:
    """A value known once the decisions are. Arithmetic and comparisons of expressions make larger ones."""

    __hash__ = object.__hash__

    def _value(self, read: Read) -> Any:
        return read(self)

    def _children(self) -> tuple[Expression, ...]:
        return ()

    def _text(self) -> str:
        raise AssertionError("expressions name themselves")

    def _json(self) -> Any:
        raise AssertionError("expressions write themselves")

    def __repr__(self) -> str:
        return self._text()

    def __bool__(self) -> bool:
        raise TypeError(f"a constraint has no truth value while the space is written: got `{self._text()}` in `if`, `and`, "
                        "`or`, `not` or a chained comparison; write &, |, ~, or two constraints")

    __add__, __radd__ = _joined("+"), _joined_from_right("+")
    __sub__, __rsub__ = _joined("-"), _joined_from_right("-")
    __mul__, __rmul__ = _joined("*"), _joined_from_right("*")
    __truediv__, __rtruediv__ = _joined("/"), _joined_from_right("/")
    __floordiv__, __rfloordiv__ = _joined("//"), _joined_from_right("//")
    __mod__, __rmod__ = _joined("%"), _joined_from_right("%")
    __pow__ = _joined("**")
    __le__, __lt__, __ge__, __gt__ = _compared("<="), _compared("<"), _compared(">="), _compared(">")
    __eq__, __ne__ = _compared("=="), _compared("!=")                                 # type: ignore[assignment]

    def __neg__(self) -> Arithmetic:
        return Arithmetic("-", Constant(0), self)


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Expression):
    """A number, text, truth value or None."""

    held: Any

    def _value(self, read: Read) -> Any:
        return self.held

    def _text(self) -> str:
        is_number = isinstance(self.held, (int, float)) and not isinstance(self.held, bool)
        return f"{self.held:,.12g}" if is_number else repr(self.held)

    def _json(self) -> Any:
        return self.held


@dataclass(frozen=True, eq=False, repr=False)
class Arithmetic(Expression):
    """Two expressions joined by +, -, *, /, //, % or **."""

    op: str
    left: Expression
    right: Expression

    def _value(self, read: Read) -> Any:
        return ARITHMETIC[self.op](as_number(self.left._value(read)), as_number(self.right._value(read)))

    def _children(self) -> tuple[Expression, ...]:
        return self.left, self.right

    def _text(self) -> str:
        return _infix(self.op, self.left, self.right)

    def _json(self) -> Any:
        return {self.op: [self.left._json(), self.right._json()]}


class Condition(Expression):
    """An expression that is true or false: a constraint by itself. Joined by &, | and ~."""

    def __and__(self, other: Condition) -> Logic:
        return Logic("and", (self, _as_condition(other)))

    def __or__(self, other: Condition) -> Logic:
        return Logic("or", (self, _as_condition(other)))

    def __invert__(self) -> Logic:
        return Logic("not", (self,))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Condition):
    """Two expressions compared."""

    op: str
    left: Expression
    right: Expression

    def _value(self, read: Read) -> bool:
        left, right = self.left._value(read), self.right._value(read)
        if self.op in EQUALITY:
            return EQUALITY[self.op](left, right)
        return ORDER[self.op](as_number(left), as_number(right))

    def _children(self) -> tuple[Expression, ...]:
        return self.left, self.right

    def _text(self) -> str:
        return _infix(self.op, self.left, self.right)

    def _json(self) -> Any:
        return {self.op: [self.left._json(), self.right._json()]}


@dataclass(frozen=True, eq=False, repr=False)
class Logic(Condition):
    """Conditions joined by and, or, not."""

    op: str
    parts: tuple[Condition, ...]

    def _value(self, read: Read) -> bool:
        values = [part._value(read) for part in self.parts]          # all of them: one that is absent makes this absent
        return all(values) if self.op == "and" else any(values) if self.op == "or" else not values[0]

    def _children(self) -> tuple[Expression, ...]:
        return self.parts

    def _text(self) -> str:
        return f"not {_nested('not', self.parts[0])}" if self.op == "not" else _infix(self.op, *self.parts)

    def _json(self) -> Any:
        return {self.op: [part._json() for part in self.parts]}


def _infix(op: str, *parts: Expression) -> str:
    return f" {op} ".join(_nested(op, part, index) for index, part in enumerate(parts))


def _nested(op: str, part: Expression, index: int = 0) -> str:
    """A part in brackets where the reader needs them."""
    inner = 3 if isinstance(part, Comparison) else BINDING[part.op] if isinstance(part, (Arithmetic, Logic)) else 9
    outer = BINDING.get(op, 3)
    return f"({part._text()})" if inner < outer or (inner == outer and index) else part._text()


def as_expression(item: Any) -> Expression:
    """An expression as it is, a plain value as a constant. Raises TypeError for anything else."""
    if isinstance(item, Expression):
        return item
    if item is None or isinstance(item, (bool, int, float, str)):
        return Constant(item)
    raise TypeError(f"a constraint is made of numbers, text, None and expressions such as value('width'): got {item!r}")


def _as_condition(item: Any) -> Condition:
    if isinstance(item, Condition):
        return item
    raise TypeError(f"& and | join comparisons: got {item!r}; put each comparison in brackets")


def as_number(value: Any) -> Any:
    return math.inf if value is None else value


def leaves(item: Expression) -> Iterator[Expression]:
    """Every expression below `item` that has none below itself, constants left out."""
    if not item._children() and not isinstance(item, Constant):
        yield item
    for child in item._children():
        yield from leaves(child)


def text_of(item: Any) -> str:
    """The constraint in words, by which errors name it."""
    return item._text() if hasattr(item, "_text") else getattr(item, "__name__", repr(item))
