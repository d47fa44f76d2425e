"""What a candidate is judged by: a name, a direction, a unit, a function, and perhaps a bound.

Direction and unit live on the `Objective` and nowhere else. Built-in objectives are looked up by name:

    loss          the task's metric on its held-out split, e.g. bits per byte (needs a trained model and a
    task) parameters    numbers in the model's parameters
    macs          multiply-adds of a prefill of 256 tokens, one sequence
    state_bytes   bytes of decode state of one sequence after 256 tokens, float32
    measured_macs multiply-adds per token that ran on the task's held-out split (needs a trained model and a task)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ..registry import Registry
from .devices import machine_share

__all__ = ["Estimate", "Objective", "objectives", "resolve"]

COST_LENGTH = 256


class Estimate(NamedTuple):
    """A number with what is known of its uncertainty: `low` to `high` is a 95 % interval."""

    value: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class Objective:
    """One axis of the front.

    Attributes:
        evaluate: called in the worker as `evaluate(architecture)` or, with `needs="model"`, as
            `evaluate(architecture, module)`, where the module is the candidate's own packed copy in
            evaluation mode, on the sweep's device. Returns a number or an `Estimate`. It travels by
            cloudpickle, so lambdas and closures are fine.
        bound: what the value must not exceed (goal "min") or fall below (goal "max"); written `objective <=
            10`.
        reference: this objective's coordinate of the hypervolume's reference point, if it is known
            beforehand.
        device: where the number is measured, for objectives that measure.

    Example:
        >>> size = Objective("size", goal="min", unit="MB", evaluate=lambda architecture: 4.2)
        >>> (size <= 4).violation(5.0)
        0.25
    """

    name: str
    goal: Literal["min", "max"] = "min"
    unit: str = ""
    evaluate: Callable[..., Any] | None = None
    needs: Literal["architecture", "model"] = "architecture"
    bound: float | None = None
    reference: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"an objective has a name, a string that is not empty: got {self.name!r}")
        for label, value, allowed in (("goal", self.goal, ("min", "max")),
                                      ("needs", self.needs, ("architecture", "model"))):
            if value not in allowed:
                raise ValueError(f"{label} must be one of {', '.join(allowed)} at objective {self.name!r}: "
                                 f"got {value!r}")
        if not callable(self.evaluate):
            raise TypeError(f"evaluate must be a function at objective {self.name!r}: got {self.evaluate!r}; "
                            "give evaluate=my_function")
        for label, number in (("bound", self.bound), ("reference", self.reference)):
            if number is not None and not _is_finite(number):
                raise ValueError(f"{label} must be a finite number at objective {self.name!r}: got "
                                 f"{number!r}")

    def __le__(self, bound: float) -> Objective:
        """A copy that must not exceed `bound`; only where less is better."""
        return self._bounded(bound, "min", "<=")

    def __ge__(self, bound: float) -> Objective:
        """A copy that must not fall below `bound`; only where more is better."""
        return self._bounded(bound, "max", ">=")

    def _bounded(self, bound: float, goal: str, sign: str) -> Objective:
        if self.goal != goal:
            better, other = ("smaller", "<=") if self.goal == "min" else ("larger", ">=")
            raise ValueError(f"a bound stands on the side that is worse: {self.name} is better {better}, so "
                             f"it takes {other}, not {sign} {bound!r}; write objective {other} {bound!r}")
        if not _is_finite(bound):
            raise ValueError(f"a bound is a finite number at objective {self.name!r}: got {bound!r}")
        return replace(self, bound=float(bound))

    def violation(self, value: float) -> float:
        """By how much `value` breaks the bound, as a share of the bound; 0 when it holds, inf for NaN.

        Being relative, violations of objectives in different units may be added. A bound of 0 counts
        absolutely.
        """
        if self.bound is None:
            return 0.0
        if math.isnan(value):
            return math.inf
        excess = value - self.bound if self.goal == "min" else self.bound - value
        return max(0.0, excess) / (abs(self.bound) or 1.0)

    def describe(self) -> str:
        """One line for people, e.g. "decode_latency (ms on cpu, less is better, at most 10)"."""
        where = f" on {self.device}" if self.device else ""
        parts = [f"{self.unit}{where}".strip(), "less is better" if self.goal == "min" else "more is better"]
        if self.bound is not None:
            parts.append(f"at {'most' if self.goal == 'min' else 'least'} {self.bound:g}")
        return f"{self.name} ({', '.join(part for part in parts if part)})"


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


def parameters(architecture: Any) -> float:
    """Numbers in the parameters of the model, shared ones once."""
    return float(architecture.cost(COST_LENGTH).parameters)


def macs(architecture: Any) -> float:
    """Multiply-adds of a prefill of 256 tokens, one sequence."""
    return float(architecture.cost(COST_LENGTH).macs)


def state_bytes(architecture: Any) -> float:
    """Bytes of the decode state of one sequence after 256 tokens."""
    return float(architecture.cost(COST_LENGTH).state_bytes)


@dataclass(frozen=True)
class HeldOutMetric:
    """The metric of a task, as a function of (architecture, module). Without a task it can only say so.

    `dtype` is the short type that the module computes in, None for the type of its weights.
    """

    task: Any = None
    split: str = "validation"
    dtype: str | None = None

    def __call__(self, architecture: Any, module: Any) -> float:
        if self.task is None:
            raise ValueError('the objective "loss" is the metric of a task: this sweep has none; give task=')
        with machine_share(alone=False):
            mixed = {} if self.dtype is None else {"dtype": self.dtype}     # a task of the user's may not know it
            return float(self.task.score(module, self.split, **mixed))


def _loss(task: Any) -> Objective:
    unbound = Objective("loss", evaluate=HeldOutMetric(), needs="model")
    return resolve(unbound, task)


objectives: Registry[Callable[[Any], Objective]] = Registry("objective")
objectives.register("loss", _loss)
objectives.register("parameters", lambda task: Objective("parameters", evaluate=parameters))
objectives.register("macs", lambda task: Objective("macs", unit="MACs", evaluate=macs))
objectives.register("state_bytes", lambda task: Objective("state_bytes", unit="bytes", evaluate=state_bytes))


def _measured(task: Any) -> Objective:
    from .measured import MeasuredMacs

    return Objective("measured_macs", unit="MACs per token", evaluate=MeasuredMacs(task), needs="model")


objectives.register("measured_macs", _measured)


def resolve(item: str | Objective, task: Any = None) -> Objective:
    """An objective from its name, or the objective itself; "loss" is bound to the metric and unit of `task`.

    Third parties register a function `(task) -> Objective`. Without a task, "loss" resolves to an objective
    without a unit whose evaluation raises; resolve it again with the task.

    Raises:
        ValueError: no objective has this name; the text gives the nearest one.
        TypeError: neither a name nor an Objective.
    """
    if isinstance(item, str):
        return objectives.get(item)(task)
    if not isinstance(item, Objective):
        raise TypeError(f"an objective is a name or an Objective: got {item!r}; wrap a function as "
                        'Objective("my_objective", evaluate=my_function)')
    if isinstance(item.evaluate, HeldOutMetric) and item.evaluate.task is None and task is not None:
        return replace(item, unit=task.unit, goal=task.goal, evaluate=HeldOutMetric(task))
    return item
