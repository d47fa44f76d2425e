"""One candidate while it is judged: its module once that is needed, and what was found of it so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from .objectives import Estimate, Objective

if TYPE_CHECKING:
    from ..space.architecture import Architecture

__all__ = ["Subject"]


class Subject:
    """A candidate and what was found of it; its module is made when an objective first needs it."""

    def __init__(self, architecture: Architecture, make: Callable[[], nn.Module]):
        self.architecture, self._make = architecture, make
        self._module: nn.Module | None = None
        self.values: dict[str, float] = {}
        self._intervals: dict[str, list[float]] = {}
        self._notes: dict[str, str] = {}

    def judge(self, objective: Objective) -> None:
        """Evaluate one objective."""
        assert objective.evaluate is not None
        if objective.needs == "architecture":
            answer = objective.evaluate(self.architecture)
        else:
            if self._module is None:
                self._module = self._make()
            answer = objective.evaluate(self.architecture, self._module)
        self.take(objective.name, answer)

    def take(self, name: str, answer: Any) -> None:
        """A number or an Estimate of an objective. Raises TypeError for anything else."""
        if isinstance(answer, Estimate):
            self._intervals[name] = [float(answer.low), float(answer.high)]
            self._notes[name] = answer.note
            answer = answer.value
        try:
            self.values[name] = float(answer)
        except (TypeError, ValueError) as wrong:
            raise TypeError(f"an objective returns a number or an Estimate at {name!r}: got {answer!r}") from wrong

    def answer(self, names: Sequence[str]) -> dict[str, Any]:
        """The answer to a job, in the order of the names."""
        ordered = {part: {name: found[name] for name in names if name in found}
                   for part, found in (("objectives", self.values), ("intervals", self._intervals), ("notes", self._notes))}
        notes = ordered.pop("notes")
        return {**ordered, "extra": {"notes": notes} if notes else {}}
