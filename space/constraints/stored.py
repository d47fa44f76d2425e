"""Declared constraints as JSON, and back.

Every expression is an object with one key that says what it is; numbers, text and null stand for themselves. Code of a
user's own (a function of a plan, a measurement, an objective) is written by its name, which identifies it but cannot be
read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .expressions import (
    ARITHMETIC,
    EQUALITY,
    ORDER,
    Arithmetic,
    Comparison,
    Condition,
    Expression,
    Logic,
    as_expression,
)
from .leaves import Count, Field, Total, Value
from .rules import Monotone, Rule, Within, as_rule
from .words import cost

__all__ = ["rules_from", "to_stored"]


def to_stored(rules: Iterable[Rule]) -> list[Any]:
    """The JSON form of the constraints of a space."""
    return [rule._json() for rule in rules]


def rules_from(stored: Iterable[Any]) -> list[Rule]:
    """Read what `to_stored` wrote. Raises ValueError for code of a user's own."""
    stored = list(stored)
    code = [name for item in stored for name in _code(item)]
    if code:
        raise ValueError("a space is read back from JSON only without code of your own: it has the constraints "
                         f"{', '.join(code)}; load it from the Python file that defines it")
    return [as_rule(_rule(item)) for item in stored]


def _code(item: Any) -> list[str]:
    """The names of code in the JSON form of a constraint."""
    if isinstance(item, str):
        return [item]
    return [name for part in _objects(item) for name in [part.get("measure")] if isinstance(name, str)]


def _objects(item: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(item, Mapping):
        yield item
    for part in item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ():
        yield from _objects(part)


def _rule(item: Mapping[str, Any]) -> Any:
    (word, inner), = item.items()
    if word == "within":
        return Within(inner["of"], _condition(inner["rule"]))
    if word == "monotone":
        return Monotone(_expression(inner["amount"]), inner["direction"], inner["of"], inner["strict"])
    return _expression(item)


def _condition(item: Any) -> Condition:
    made = _expression(item)
    if not isinstance(made, Condition):
        raise ValueError(f"a stored constraint is a comparison: got {item!r}")
    return made


def _expression(item: Any) -> Expression:
    if not isinstance(item, Mapping):
        return as_expression(item)
    (word, inner), = item.items()
    if word in ARITHMETIC:
        return Arithmetic(word, *map(_expression, inner))
    if word in ORDER or word in EQUALITY:
        return Comparison(word, *map(_expression, inner))
    if word in ("and", "or", "not"):
        return Logic(word, tuple(map(_condition, inner)))
    if word == "value":
        return Value(inner)
    if word == "field":
        return Field(tuple(inner.split(".")))
    if word == "cost":
        length = inner["length"]
        return cost(inner["metric"], tuple(length) if isinstance(length, list) else length)
    if word in ("count", "total"):
        where = _condition(inner["where"]) if inner["where"] is not None else None
        return Count(inner["of"], where) if word == "count" else Total(_expression(inner["amount"]), inner["of"], where)
    raise ValueError(f"a stored constraint is written in the words of this version: got {word!r}; write the space again")
