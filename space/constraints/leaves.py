"""What constraints read: a value at a place, a field of a part, a count or a sum over parts, a cost, a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .expressions import Expression

__all__ = ["Cost", "Count", "Field", "Measure", "Total", "Value"]


@dataclass(frozen=True, eq=False, repr=False)
class Value(Expression):
    """The value decided at one place of the space."""

    path: str

    def _text(self) -> str:
        return f"value({self.path})"

    def _json(self) -> Any:
        return {"value": self.path}


@dataclass(frozen=True, eq=False, repr=False)
class Field(Expression):
    """A field of the part that a constraint is applied to, or a field of a field."""

    _names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):
            raise AttributeError(name)
        return Field((*self._names, name))

    def _text(self) -> str:
        return ".".join(self._names) or "the part itself"

    def _json(self) -> Any:
        return {"field": ".".join(self._names)}


@dataclass(frozen=True, eq=False, repr=False)
class Count(Expression):
    """How many parts there are of a class or at a path, those that satisfy `where`."""

    of: str
    where: Expression | None = None

    def _text(self) -> str:
        return f"count({self.of}{_condition(self.where)})"

    def _json(self) -> Any:
        return {"count": {"of": self.of, "where": self.where._json() if self.where is not None else None}}


@dataclass(frozen=True, eq=False, repr=False)
class Total(Expression):
    """The sum of `amount` over the parts of a class or at a path, those that satisfy `where`."""

    amount: Expression
    of: str
    where: Expression | None = None

    def _text(self) -> str:
        return f"total({self.amount._text()}, of={self.of}{_condition(self.where)})"

    def _json(self) -> Any:
        return {"total": {"amount": self.amount._json(), "of": self.of,
                          "where": self.where._json() if self.where is not None else None}}


def _condition(where: Expression | None) -> str:
    return f", {where._text()}" if where is not None else ""


@dataclass(frozen=True, eq=False, repr=False)
class Cost(Expression):
    """A cost of the whole architecture, from its declarations; at `length`, or the architecture's own default."""

    metric: str
    length: int | tuple[int, int] | None = None

    def _of(self, architecture: Any) -> float:
        """The cost of one architecture."""
        found = architecture.cost() if self.length is None else architecture.cost(self.length)
        return getattr(found, self.metric)                                           # type: ignore[no-any-return]

    def _text(self) -> str:
        return f"cost({self.metric})" if self.length is None else f"cost({self.metric}, length={self.length})"

    def _json(self) -> Any:
        return {"cost": {"metric": self.metric, "length": self.length}}


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Expression):
    """What a function of an architecture returns."""

    function: Callable[[Any], float]
    name: str

    def _of(self, architecture: Any) -> float:
        found = self.function(architecture)
        return float(getattr(found, "value", found))

    def _text(self) -> str:
        return self.name

    def _json(self) -> Any:
        return {"measure": self.name}
