"""What a strategy is: it sees genomes and numbers, never tensors, and its state is a function of what it was
told.

The life of a strategy, all of it in the process that runs the sweep:

1. `start(space, objectives, seed)` once, before anything else. Randomness comes from the seed alone.
2. `ask(n)` whenever the sweep has room for candidates, also while earlier ones are still being evaluated.
3. `tell(evaluations)` as results arrive, in the order the journal records; a failed candidate comes with `values`
   None. A strategy may be told of genomes it never asked for (initial architectures), and again of one it proposed
   twice.

A strategy is never pickled. To resume, the journal's asks and tells are replayed on a fresh one, and every
`ask` must return what it returned before; so nothing but the seed and the calls may influence it (no clock,
no set order).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ...registry import Registry
from ...space.genome import Genome

if TYPE_CHECKING:
    from ...evaluators.objectives import Objective
    from ...space.space import Space

__all__ = ["Strategy", "Told", "describe", "goals", "resolve", "strategies", "values_matrix"]


@dataclass(frozen=True)
class Told:
    """One result: `values` by objective name, None when the candidate failed; `violation` 0 when every bound
    holds."""

    genome: Genome
    values: Mapping[str, float] | None
    violation: float = 0.0


@runtime_checkable
class Strategy(Protocol):
    """See the module's docstring for who calls what, when."""

    def start(self, space: Space, objectives: Sequence[Objective], seed: int) -> None: ...

    def ask(self, n: int) -> list[Genome]:
        """Up to `n` canonical genomes; fewer, or none, when the space holds no more that are new."""
        ...

    def tell(self, evaluations: Sequence[Told]) -> None: ...


strategies: Registry[type] = Registry("strategy")
for _name, _target in {
    "random": "random:Random",
    "evolution": "evolution:Evolution",
    "local_search": "local_search:LocalSearch",
    "optuna:tpe": "optuna:OptunaTPE",
    "optuna:nsga2": "optuna:OptunaNSGA2",
}.items():
    strategies.register(_name, f"{__package__}.{_target}")


def resolve(strategy: str | Strategy) -> Strategy:
    """A strategy from its name or itself. Raises ValueError with the nearest known name, TypeError for other
    things."""
    if isinstance(strategy, str):
        made: Strategy = strategies.get(strategy)()
        return made
    if isinstance(strategy, type) or not isinstance(strategy, Strategy):
        raise TypeError(f"strategy is a name or an object with start, ask and tell: got {strategy!r}; "
                        f"names: {', '.join(strategies.names())}")
    return strategy


def describe(strategy: Strategy) -> dict[str, Any]:
    """Name and settings of a strategy, for the journal; settings are the fields of a dataclass strategy."""
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(strategy):
        settings = {f.name: getattr(strategy, f.name) for f in dataclasses.fields(strategy) if f.init}
    return {"name": getattr(strategy, "name", type(strategy).__name__), "settings": settings}


def goals(objectives: Sequence[Objective]) -> list[str]:
    """The goal of every objective, in order."""
    return [objective.goal for objective in objectives]


def values_matrix(values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> list[list[float]]:
    """Rows of objective values in the order of the objectives."""
    return [[row[objective.name] for objective in objectives] for row in values]
