"""A device that is a table: what every operator takes on it is looked up, and an architecture takes their sum.

For hardware that is not there, or not built: an accelerator's simulator, a protocol of encrypted inference, a datasheet.
The sum knows nothing of gaps between operators, of fusion or of overlap; where these matter, measure whole models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...registry import unknown
from ...space.graph import operator_label
from ...space.operator import Length, Operator, tokens_of
from ..objectives import Estimate, Objective
from .profile import Answer, Profile
from .runs import Run, runs_of
from .work import PHASES

if TYPE_CHECKING:
    from ...space.architecture import Architecture

__all__ = ["Device", "Share"]

Table = Mapping[Any, float] | Callable[[Operator, int, Length], float]


class Share(NamedTuple):
    """What one operator adds: how often it runs, and what one run takes, with what is known of that number."""

    place: str
    label: str
    times: float
    each: Answer


@dataclass(frozen=True)
class Device:
    """A device whose numbers are looked up. Made by `from_table` or `from_profile`; travels to workers by cloudpickle.

    Example:
        >>> npu = Device.from_table({"Attention": 2.0, "SwiGLU(ratio=2)": 0.5}, name="npu", default=0.0)
        >>> npu.objective().describe()
        'npu_prefill (ms on npu, less is better)'
    """

    name: str
    unit: str
    look: Callable[[Run], Answer]

    @classmethod
    def from_table(cls, table: Table, name: str = "table", unit: str = "ms", default: float | None = None) -> Device:
        """A device from a mapping of operators to numbers, or from a function `(operator, width, length) -> number`.

        A key is an operator's config, its label ("Attention(heads=2)": the fields that are not at their default), its class
        name for all configs of it, or one of these with a width: `("Attention", 64)`. What says most wins. Numbers are in
        `unit`, per run and sequence, of one phase: a prefill and a decode are two tables. default: what operators cost that
        the table lacks; without it they are an error.

        Raises:
            ValueError: no entries, or a number that is not finite or is negative.
            TypeError: a key that names no operator.
        """
        _check_number(default, "default", name)
        if callable(table):
            def called(run: Run) -> Answer:
                value = table(run.operator, run.width, run.length)
                return _exact(_check_number(value, f"{operator_label(run.operator)} at {run.place}", name, given=True))
            return cls(name, unit, called)
        entries: dict[tuple[str, int | None], float] = {}
        for key, value in table.items():
            label, width = _key(key, name)
            entries[label, width] = _check_number(value, repr(key), name, given=True)
        if not entries:
            raise ValueError(f"a table of a device has entries: got none for {name!r}")
        return cls(name, unit, lambda run: _exact(_looked_up(entries, run, name, default)))

    @classmethod
    def from_profile(cls, profile: Profile | str, batch: int = 1, default: float | None = None, **conditions: Any) -> Device:
        """A device from a measured profile, or the name of a shipped one. Embeddings and heads, which a profile does not
        hold, cost `default`, 0 where it is None; others it lacks cost `default` too, and without one are an error.

        conditions: dtype, mode and threads, as `Profile.latency` takes them. A length beyond the profile is extrapolated,
        which the estimate's note says.
        """
        known = profile if isinstance(profile, Profile) else Profile.load(profile)
        _check_number(default, "default", str(known.device["name"]))
        measured = set(known.labels())

        def look(run: Run) -> Answer:
            label = operator_label(run.operator)
            if label not in measured and (default is not None or run.operator.kind in ("embedding", "head")):
                return _exact(default or 0.0)
            return known.latency(label, run.width, batch, tokens_of(run.length), run.phase, **conditions)

        return cls(str(known.device["name"]), "ms", look)

    def shares(self, architecture: Architecture, phase: str = "prefill", length: Length | None = None) -> list[Share]:
        """What each operator adds, in order; a loop's operators run as often as it goes around.

        Raises ValueError for an operator the device knows nothing of, with its place.
        """
        if phase not in PHASES:
            raise ValueError(f"phase of a device's numbers must be one of {', '.join(PHASES)}: got {phase!r}")
        return [Share(run.place, operator_label(run.operator), run.times, self.look(run))
                for run in runs_of(architecture, phase, length)]

    def estimate(self, architecture: Architecture, phase: str = "prefill", length: Length | None = None) -> Estimate:
        """The sum over operators. Its interval adds up theirs: it is as wide as if all erred to one side."""
        shares = self.shares(architecture, phase, length)
        value, low, high = (float(sum(share.times * getattr(share.each, name) for share in shares))
                            for name in ("value", "low", "high"))
        guessed, loud = (sum(1 for share in shares if getattr(share.each, flag)) for flag in ("extrapolated", "noisy"))
        note = f"sum over {len(shares)} operators" + (f", {guessed} of them extrapolated" if guessed else "")
        return Estimate(value, low, high, note + (f", {loud} measured while the machine was not quiet" if loud else ""))

    def objective(self, name: str | None = None, phase: str = "prefill", length: Length | None = None) -> Objective:
        """The sum over an architecture's operators as an objective; it needs no model, so it costs a search microseconds."""
        if phase not in PHASES:
            raise ValueError(f"phase of a device's numbers must be one of {', '.join(PHASES)}: got {phase!r}")
        label = name or f"{self.name.lower().replace(' ', '_')}_{phase}"
        return Objective(label, unit=self.unit, evaluate=lambda architecture: self.estimate(architecture, phase, length),
                         device=self.name)


def _exact(value: float) -> Answer:
    return Answer(value, value, value)


def _check_number(value: Any, what: str, name: str, given: bool = False) -> float:
    """A number of a table; None stands for one that is not given."""
    if value is None and not given:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"numbers of a device are finite and not negative at {what} of {name!r}: got {value!r}")
    return float(value)


def _key(key: Any, name: str) -> tuple[str, int | None]:
    head, width = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
    if isinstance(head, Operator):
        head = operator_label(head)
    elif isinstance(head, type) and issubclass(head, Operator):
        head = head.__name__
    if not isinstance(head, str) or not (width is None or (isinstance(width, int) and width > 0)):
        raise TypeError(f"a key of a device's table is an operator, its label, its class, or one of these with a width, at "
                        f"{name!r}: got {key!r}")
    return head, width


def _looked_up(entries: Mapping[tuple[str, int | None], float], run: Run, name: str, default: float | None) -> float:
    label, kind = operator_label(run.operator), type(run.operator).__name__
    for key in ((label, run.width), (label, None), (kind, run.width), (kind, None)):
        if key in entries:
            return entries[key]
    if default is not None:
        return default
    known = [f"{head}" if width is None else f"{head} at width {width}" for head, width in entries]
    raise ValueError(f"{unknown('operator', label, known)} in the table of {name!r}, needed at {run.place} with width "
                     f"{run.width}; add it, or give default=0.0")
