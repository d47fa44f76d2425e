"""The kinds of constraint: over decisions (pruned before sampling), over costs (rejected and repaired), code of a user's own.

A `Condition` is a rule by itself; `Within` and `Monotone` apply an expression to parts. A `Predicate` is a function of the
resolved plan, about which nothing is known but its answer; a `Bounded` is an objective with a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .expressions import Condition, Expression, leaves
from .leaves import Cost, Count, Field, Measure, Total, Value

__all__ = ["Bounded", "Monotone", "Predicate", "Rule", "Within", "as_rule", "is_of_cost", "is_of_decisions",
           "listed"]

DIRECTIONS = ("decreasing", "increasing")


@dataclass(frozen=True, eq=False, repr=False)
class Within:
    """A condition on every part of a class or at a path."""

    of: str
    rule: Condition

    def _text(self) -> str:
        return f"within({self.of}): {self.rule._text()}"

    def _json(self) -> Any:
        return {"within": {"of": self.of, "rule": self.rule._json()}}

    def __repr__(self) -> str:
        return self._text()


@dataclass(frozen=True, eq=False, repr=False)
class Monotone:
    """A value that never grows, or never shrinks, from one part to the next in the order they are run."""

    amount: Expression
    direction: str
    of: str
    strict: bool = False

    def _text(self) -> str:
        return f"monotone({self.amount._text()}, {'strictly ' * self.strict}{self.direction}, of={self.of})"

    def _json(self) -> Any:
        return {"monotone": {"amount": self.amount._json(), "direction": self.direction, "of": self.of,
                             "strict": self.strict}}

    def __repr__(self) -> str:
        return self._text()


@dataclass(frozen=True, eq=False)
class Predicate:
    """A function of a resolved `Plan` that returns whether it is allowed."""

    function: Any

    def _text(self) -> str:
        return str(getattr(self.function, "__name__", repr(self.function)))

    def _json(self) -> Any:
        return getattr(self.function, "__qualname__", repr(self.function))


@dataclass(frozen=True, eq=False)
class Bounded:
    """An objective that has a bound and judges an architecture without a module."""

    objective: Any

    def _text(self) -> str:
        sign = "<=" if self.objective.goal == "min" else ">="
        return f"{self.objective.name} {sign} {self.objective.bound:g}"

    def _json(self) -> Any:
        return self._text()

    def violation(self, architecture: Any) -> float:
        """By how much the bound is broken, as a share of it; 0 when it holds."""
        found = self.objective.evaluate(architecture)
        return float(self.objective.violation(float(getattr(found, "value", found))))


Rule = Condition | Within | Monotone | Predicate | Bounded


def as_rule(item: Any) -> Rule:
    """A constraint as the space keeps it. Raises TypeError or ValueError for what cannot be one."""
    if isinstance(item, Condition):
        _check_condition(item)
        return item
    if isinstance(item, (Within, Monotone, Predicate, Bounded)):
        return item
    if isinstance(item, Expression):
        raise TypeError(f"a constraint compares its expression with something: got `{item._text()}` alone; "
                        f"write {item._text()} <= limit")
    if all(hasattr(item, name) for name in ("bound", "goal", "evaluate", "violation")):
        return _bounded(item)
    if callable(item) and not isinstance(item, type):
        return Predicate(item)
    raise TypeError("constraints are declared rules such as cost('parameters') <= 5e6, bounded objectives, and functions of "
                    f"a Plan: got {item!r}")


def listed(constraints: Any) -> tuple[Any, ...]:
    """The constraints of a space as they were given. Raises TypeError for a single one."""
    if isinstance(constraints, (Expression, Within, Monotone)) or not hasattr(constraints, "__iter__"):
        raise TypeError(f"constraints is a list of them: got {constraints!r}; write constraints=[...]")
    return tuple(constraints)


def _bounded(objective: Any) -> Bounded:
    if objective.bound is None:
        raise ValueError(f"an objective is a constraint when it has a bound: got {objective.name!r} without one; "
                         f"write objective <= limit")
    if objective.needs != "architecture":
        raise ValueError(f"a constraint judges an architecture before a model is made: {objective.name!r} needs a model; "
                         "give it to Sweep(objectives=...) with its bound, or predict it: measure(predictor) <= limit")
    return Bounded(objective)


def _check_condition(condition: Condition) -> None:
    read = list(leaves(condition))
    if not read:
        raise ValueError(f"a constraint reads the space: `{condition._text()}` holds only constants; use value(...), "
                         "count(...), total(...) or cost(...)")
    if any(isinstance(leaf, Field) for leaf in read):
        raise ValueError(f"a field is read inside within(...): got `{condition._text()}` by itself; "
                         "write within(Attention, lambda a: ...)")
    kinds = {isinstance(leaf, (Cost, Measure)) for leaf in read}
    if len(kinds) > 1:
        raise ValueError(f"costs are compared with numbers and costs, decisions with decisions: got `{condition._text()}`; "
                         "for both at once write a measure(function) of the architecture")


def is_of_cost(rule: Rule) -> bool:
    """Whether a rule is about costs and measurements of a whole architecture."""
    return isinstance(rule, Bounded) or (
        isinstance(rule, Condition) and any(isinstance(leaf, (Cost, Measure)) for leaf in leaves(rule)))


def is_of_decisions(rule: Rule) -> bool:
    """Whether a rule is over decisions alone, so that it is known before anything is built."""
    if isinstance(rule, Condition):
        return all(isinstance(leaf, (Value, Count, Total)) for leaf in leaves(rule))
    return isinstance(rule, (Within, Monotone))
