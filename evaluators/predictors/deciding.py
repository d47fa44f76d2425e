"""Whether a candidate's place is known although some of its objectives are only predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .table import Floats

__all__ = ["corner", "place"]


def corner(values: Mapping[str, float], guesses: Mapping[str, Sequence[float]], objectives: Sequence[Any],
           side: Literal["best", "worst"]) -> Floats:
    """Costs float64[objectives], less is better, with each guessed (value, low, high) at the better or worse end."""
    costs = []
    for objective in objectives:
        sign = 1.0 if objective.goal == "min" else -1.0
        ends = guesses[objective.name][1:3] if objective.name in guesses else [values[objective.name]]
        signed = [sign * float(end) for end in ends]
        costs.append(min(signed) if side == "best" else max(signed))
    return np.array(costs)


def place(values: Mapping[str, float], guesses: Mapping[str, Sequence[float]], objectives: Sequence[Any],
          front: Sequence[tuple[Mapping[str, float], Mapping[str, Sequence[float]]]]) -> Literal["on", "off", "open"]:
    """Where a candidate stands: "off" the front even at the better ends of what is guessed of it, "on" it even at the worse
    ends, or "open" between the two.

    values: what is known, by objective; guesses: (value, low, high) of the others. objectives: with name, goal and bound.
    front: values and guesses of the candidates on it, which are taken at the end that decides least.
    """
    best, worst = (corner(values, guesses, objectives, side) for side in ("best", "worst"))
    limits = np.array([np.inf if o.bound is None else o.bound if o.goal == "min" else -o.bound for o in objectives])
    if (best > limits).any() or any(_dominates(corner(*one, objectives, "worst"), best) for one in front):
        return "off"
    is_on = (worst <= limits).all() and not any(_dominates(corner(*one, objectives, "best"), worst) for one in front)
    return "on" if is_on else "open"


def _dominates(one: Floats, other: Floats) -> bool:
    return bool((one <= other).all() and (one < other).any())
