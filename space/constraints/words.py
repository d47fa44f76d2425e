"""The words constraints are written in: `value`, `within`, `count`, `total`, `monotone`, `cost`, `measure`.

Parts are named by their class (`Attention`) or by where they stand (`"body[*].mixer"`): fields in a row from a field of the
space, `[3]` for one layer or element, `[*]` for every one; choices on the way are passed through. A constraint about
something that an architecture does not have holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from .expressions import Condition, Expression, Logic, as_expression, leaves
from .leaves import Cost, Count, Field, Measure, Total, Value
from .rules import DIRECTIONS, Monotone, Within

__all__ = ["cost", "count", "measure", "monotone", "total", "value", "within"]

METRICS = {"parameters": "parameters", "weight_bytes": "weight_bytes", "macs": "macs", "decode_macs": "decode_macs",
           "state_bytes": "state_bytes", "kv_bytes": "state_bytes"}
Selection = Callable[[Field], Condition]


def value(path: str) -> Value:
    """The value decided at one place: `value("width")`, `value("body.times")`, `value("body[0].mixer.heads")`.

    Raises ValueError for a path with `[*]`, which names many places, and, when the space is made, for one that names none.

    Example:
        >>> value("width") <= 2 * value("body.times")
        value(width) <= 2 * value(body.times)
    """
    if not isinstance(path, str) or not path:
        raise TypeError(f"value takes the path of a decision: got {path!r}; write value('width')")
    if "*" in path:
        raise ValueError(f"value names one place: got {path!r}; write within({path.rpartition('.')[0]!r}, lambda part: ...) "
                         "or total(...) for all of them")
    return Value(path)


def within(of: Any, rule: Selection) -> Within:
    """A condition that every part of a class, or at a path, keeps by itself.

    `rule` gets a stand-in for the part and returns a condition over its fields, which may read `value(...)` and counts
    too. `.width` is the part's own field of that name, else that of the stage around it or of the space.

    Example:
        >>> within("Attention", lambda a: a.heads * a.head_dim <= 2 * a.width)
        within(Attention): heads * head_dim <= 2 * width
    """
    if not callable(rule):
        raise TypeError(f"within takes a function of the part: got {rule!r}; write within(Attention, lambda a: a.heads <= 8)")
    made = rule(Field())
    _check_selected(made, "within")
    if not any(isinstance(leaf, Field) for leaf in leaves(made)):
        raise ValueError(f"within reads a field of the part: got `{made._text()}`; without one, write the comparison alone")
    return Within(_name(of), made)


def count(of: Any, where: Selection | None = None, /, **fields: Any) -> Count:
    """How many parts of a class, or at a path, an architecture has; only those whose fields are as given.

    Example:
        >>> count("Attention", window=None) <= 2
        count(Attention, window == None) <= 2
        >>> count("Attention", lambda a: a.heads * a.head_dim > 128) == 0
        count(Attention, heads * head_dim > 128) == 0
    """
    return Count(_name(of), _where(where, fields))


def total(amount: str | Callable[[Field], Any], /, of: Any, where: Selection | None = None, **fields: Any) -> Total:
    """The sum over parts of a field, or of an expression over fields; parts that lack the field add nothing.

    Example:
        >>> total("ratio", of="SwiGLU") <= 20
        total(ratio, of=SwiGLU) <= 20
        >>> total(lambda a: a.heads * a.head_dim, of="Attention", window=None) <= 512
        total(heads * head_dim, of=Attention, window == None) <= 512
    """
    return Total(_amount(amount, "total"), _name(of), _where(where, fields))


def monotone(amount: str | Callable[[Field], Any], direction: str, *, of: Any, strict: bool = False) -> Monotone:
    """A field, or an expression over fields, that only grows or only shrinks with depth.

    direction: "decreasing" or "increasing"; equal neighbours are allowed unless `strict`. None counts as infinite. Parts
    that lack the field are passed over.

    Example:
        >>> monotone("window", "decreasing", of="Attention")
        monotone(window, decreasing, of=Attention)
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"monotone is 'decreasing' or 'increasing': got {direction!r}")
    return Monotone(_amount(amount, "monotone"), direction, _name(of), bool(strict))


def cost(metric: str, length: int | tuple[int, int] | None = None) -> Cost:
    """A cost of the architecture from its declarations: parameters, weight_bytes, macs, decode_macs, state_bytes.

    `kv_bytes` is another name of `state_bytes`. Units and meaning are those of `Architecture.cost(length)`.

    Example:
        >>> cost("parameters") <= 5e6
        cost(parameters) <= 5,000,000
    """
    if metric not in METRICS:
        near = difflib.get_close_matches(str(metric), METRICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"cost is one of {', '.join(METRICS)}: got {metric!r}{hint}")
    sizes = length if isinstance(length, tuple) else (length,) if length is not None else ()
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"cost(length=) is a number of tokens, or (height, width): got {length!r}")
    return Cost(METRICS[metric], length)


def measure(function: Callable[[Any], float], name: str | None = None) -> Measure:
    """What `function(architecture)` returns, a number: a latency predictor, a price.

    The function must return the same for the same architecture, or a sweep cannot be replayed.

    Example:
        >>> measure(lambda architecture: 4.0, name="predicted latency") <= 10
        predicted latency <= 10
    """
    if not callable(function):
        raise TypeError(f"measure takes a function of an architecture: got {function!r}")
    return Measure(function, name or str(getattr(function, "__name__", repr(function))))


def _name(of: Any) -> str:
    """A class by its name; text is a class's name or a path."""
    if isinstance(of, str) and of:
        return of
    if isinstance(of, type):
        return of.__name__
    raise TypeError(f"parts are named by class or path: got {of!r}; write count(Attention) or count('body[*].mixer')")


def _amount(amount: Any, word: str) -> Expression:
    made = amount(Field()) if callable(amount) else Field(tuple(amount.split("."))) if isinstance(amount, str) else None
    if made is None or not any(isinstance(leaf, Field) for leaf in leaves(as_expression(made))):
        raise TypeError(f"{word} takes a field or a function of the part: got {amount!r}; write {word}('heads', ...)")
    _check_local(as_expression(made), word)
    return as_expression(made)


def _where(where: Selection | None, fields: dict[str, Any]) -> Condition | None:
    given: list[Condition] = [Field((name,)) == held for name, held in fields.items()]
    if where is not None:
        made = where(Field())
        _check_selected(made, "where")
        given.insert(0, made)
    for condition in given:
        _check_local(condition, "where")
    return None if not given else given[0] if len(given) == 1 else Logic("and", tuple(given))


def _check_selected(made: Any, word: str) -> None:
    if not isinstance(made, Condition):
        raise TypeError(f"the function given to {word} returns a comparison: got {made!r}; write lambda a: a.heads <= 8")
    for leaf in leaves(made):
        if isinstance(leaf, (Cost, Measure)):
            raise ValueError(f"a cost is of the whole architecture: got `{leaf._text()}` in {word}; compare it by itself")


def _check_local(made: Expression, word: str) -> None:
    for leaf in leaves(made):
        if not isinstance(leaf, Field):
            raise ValueError(f"{word} reads only fields of the part: got `{leaf._text()}`; move it out of the sum or count")

