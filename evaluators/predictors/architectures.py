"""Architectures as samples: what they do and move, their operators, their graphs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...space.tree import axes_of
from ..costing.workloads import Workload, workload
from .table import Table, based
from .typed_graph import of_architecture

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.operator import Length

__all__ = ["features"]

COSTS = ("parameters", "macs", "decode_macs", "state_bytes", "operators")
WORK = ("hidden", "transforms", "scans", "elementwise", "weights", "stream", "state", "eager")


def features(architectures: Iterable[Architecture], length: Length | None = None, phase: str = "prefill",
             base: Any = None) -> Table:
    """Architectures of one space, or of several, as a table with numbers, operators, graphs and amounts.

    Numbers: natural logarithms of 1 + parameters, multiply-adds of a prefill and of one more token, state bytes, the count
    of operators, and then of what is run in `phase` for `length` tokens, see `OperatorCost`: sums over all runs of operators,
    the count of these runs, and how often a loop adds a low-rank pair to a matrix of how many numbers. What genes say is in
    the operators, the graphs and these sums; a column for every choice would drown the others. Amounts: runs, multiply-adds
    and bytes of each class of operators. base: what `Table.base` says, or a `Device`, which is asked for this phase and
    length.
    """
    found = list(architectures)
    numbers, amounts = [], []
    for architecture in found:
        cost, work, (merges, merged) = architecture.cost(length), workload(architecture, length, phase), _merges(architecture)
        spent = {"merges": merges, "merged": merged, **_amounts(work)}
        runs = sum(amount for name, amount in spent.items() if name.startswith("runs in "))
        tally = (cost.parameters, cost.macs, cost.decode_macs, cost.state_bytes, len(architecture.placed),
                 *(work.total(column) for column in WORK), runs, merges, merged)
        numbers.append([math.log1p(number) for number in tally])
        amounts.append(spent)
    rows = [[str(place.operator) for place in architecture.placed] for architecture in found]
    wide = max(map(len, rows))
    operators = np.array([[*row, *[""] * (wide - len(row))] for row in rows], dtype=np.str_)
    names = (*COSTS, *WORK, "runs", "merges", "merged")
    return Table(np.array(numbers), names, operators, tuple(map(of_architecture, found)), amounts=tuple(amounts),
                 base=None if base is None else based(base, found, phase, length))


def _amounts(work: Workload) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, group in work.groups:
        for row in group.rows:
            kind = row.label.partition("(")[0]
            for name, amount in (("runs", row.times), ("macs", row.macs), ("bytes", row.eager or row.least)):
                found[f"{name} in {kind}"] = found.get(f"{name} in {kind}", 0.0) + amount
    return found


def _merges(architecture: Architecture) -> tuple[float, float]:
    """How often a loop adds a low-rank pair to a matrix, and how many numbers these matrices have."""
    places, repeated = architecture.placed, architecture.plan.recursion
    loops = [(f"{place.name}.", place.operator.recursion, repeated.times) for place in places      # type: ignore[attr-defined]
             if getattr(place.operator, "recursion", None) is not None]
    count = numbers = 0.0
    for prefix, loop, times in [*loops, ("", repeated, 1)]:
        if loop.lora_rank:
            inside = [_matrices(place.operator, place.width) for place in places if place.name.startswith(f"{prefix}layers.")]
            count += times * loop.times * sum(found[0] for found in inside)
            numbers += times * loop.times * sum(found[1] for found in inside)
    return count, numbers


@lru_cache(maxsize=65_536)
def _matrices(operator: Any, width: int) -> tuple[int, int]:
    numels = [declared.numel for declared in axes_of(operator, width).values() if declared.is_matrix]
    return len(numels), sum(numels)
