"""Constraints over a whole architecture: whether they hold, and how far from it one is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .expressions import Comparison, Expression, Logic, Read, as_number, leaves, text_of
from .leaves import Cost, Measure
from .rules import Bounded, Predicate

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["excess", "nearest_of"]

UNDEFINED = 1e6              # the distance of what is not a finite number
LEAST = 1e-12                # a constraint that is broken is never at distance 0


def excess(rule: Any, architecture: Architecture) -> float:
    """By how much an architecture breaks a rule: 0 when it holds. Predicates and inequalities (!=) count 1."""
    if isinstance(rule, Predicate):
        return 0.0 if rule.function(architecture.plan) else 1.0
    if isinstance(rule, Bounded):
        return rule.violation(architecture)

    def read(leaf: Expression) -> float:
        assert isinstance(leaf, (Cost, Measure))
        return leaf._of(architecture)

    return _excess(rule, read)


def nearest_of(rule: Any, architecture: Architecture, is_alone: bool) -> str:
    """What the nearest architecture that was found has, against a rule it breaks; `is_alone` when it breaks no other."""
    if not isinstance(rule, Comparison):
        return f"the nearest found breaks `{text_of(rule)}`"
    read = {leaf._text(): leaf._of(architecture) for leaf in leaves(rule) if isinstance(leaf, (Cost, Measure))}
    upward = rule.op in (">=", ">") if any(True for _ in leaves(rule.left)) else rule.op in ("<=", "<")
    is_end = is_alone and len(read) == 1 and rule.op not in ("==", "!=")
    word = "nearest" if not is_end else "largest" if upward else "smallest"
    has = ", ".join(f"{name} = {value:,.12g}" for name, value in read.items())
    return f"the {word} found has {has}, against `{rule._text()}`"


def _excess(condition: Expression, read: Read) -> float:
    """Added up over `and`, the least over `or`; for a comparison the distance of its sides."""
    if isinstance(condition, Logic) and condition.op != "not":
        parts = [_excess(part, read) for part in condition.parts]
        return sum(parts) if condition.op == "and" else min(parts)
    if condition._value(read):
        return 0.0
    if not isinstance(condition, Comparison) or condition.op == "!=":
        return 1.0
    left, right = (as_number(side._value(read)) for side in (condition.left, condition.right))
    return max(_distance(left, right), LEAST)


def _distance(left: float, right: float) -> float:
    """The logarithm of the ratio where both are positive, else the difference relative to the second."""
    if not (math.isfinite(left) and math.isfinite(right)):
        return UNDEFINED
    if left > 0 and right > 0:
        return abs(math.log(left / right))
    return abs(left - right) / (abs(right) or 1.0)
