"""Samples as a predictor sees them: named numbers, operators by position, graphs, amounts with a price, a base, an order.

Letters: N samples, D named numbers, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .typed_graph import TypedGraph

__all__ = ["Floats", "Samples", "Table", "as_table", "based", "check_values", "padded"]

Floats = NDArray[np.float64]
PARTS = ("operators", "graphs", "order", "amounts", "base")


@dataclass(frozen=True)
class Table:
    """What is known of N samples; at least one of numbers, operators and graphs.

    Attributes:
        values: float64[N, D], finite.
        names: of the D columns, each once.
        operators: strings[N, P], the operator at each position; "" where a sample has none there.
        graphs: one `TypedGraph` per sample.
        amounts: per sample, how much it has of what may have a price, such as {"macs in Attention": 3e6}; not negative. What
            comes before " in " is counted as an amount of its own as well.
        base: float64[N], above 0: what another source says of each value, such as a sum over a profile of operators; a
            predictor learns the factor between the two.
        order: float64[N] or None: when each was measured, as a row number or a time; only differences count.
    """

    values: Floats
    names: tuple[str, ...] = ()
    operators: NDArray[np.str_] | None = None
    graphs: tuple[TypedGraph, ...] | None = None
    order: Floats | None = None
    amounts: tuple[Mapping[str, float], ...] | None = None
    base: Floats | None = None

    def __post_init__(self) -> None:
        rows = len(self.values)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"a table's values have one column per name: got shape {self.values.shape} and "
                             f"{len(self.names)} names")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"a table's names occur once each: got {', '.join(self.names)}")
        for row, column in np.argwhere(~np.isfinite(self.values))[:1]:
            raise ValueError(f"features must be finite numbers: got {self.values[row, column]} in row {row}, column "
                             f"{self.names[column]!r}; leave the sample out or give the column another value")
        for label in PARTS:
            part = getattr(self, label)
            if part is not None and len(part) != rows:
                raise ValueError(f"every part of a table has its {rows} rows: got {len(part)} in {label}")
        if self.order is not None and not np.isfinite(self.order).all():
            raise ValueError("the order of measuring must be finite numbers; leave it out where it is not known")
        if self.base is not None:
            for row in np.flatnonzero(~(np.isfinite(self.base) & (self.base > 0)))[:1]:
                raise ValueError(f"a base is finite and above 0: got {self.base[row]} in row {row}; leave the sample out, or "
                                 "give the base a cost for what it lacks")
        for row, amounts in enumerate(self.amounts or ()):
            for name, amount in amounts.items():
                if not (math.isfinite(amount) and amount >= 0):
                    raise ValueError(f"amounts are finite and not negative: got {amount} of {name!r} in row {row}")
        if not self.names and self.operators is None and self.graphs is None and self.amounts is None:
            raise ValueError("a table needs numbers, operators, graphs or amounts: got none; name at least one column")

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Any) -> Table:
        """The rows of an index array or a mask, in its order."""
        index = np.arange(len(self))[index]
        parts = {label: _rows_of(getattr(self, label), index) for label in PARTS}
        return replace(self, values=self.values[index], **parts)

    def without_order(self) -> Table:
        return replace(self, order=None)

    def then(self, other: Table) -> Table:
        """Both, one below the other. Parts that one of them lacks are left out; positions are padded."""
        if self.names != other.names:
            raise ValueError(f"both tables need the same columns: got {self.names} and {other.names}")
        parts: dict[str, Any] = {}
        for label in PARTS:
            ours, others = getattr(self, label), getattr(other, label)
            if ours is None or others is None:
                parts[label] = None
            elif isinstance(ours, tuple):
                parts[label] = ours + others
            else:
                if ours.ndim == 2:
                    wide = max(ours.shape[1], others.shape[1])
                    ours, others = padded(ours, wide), padded(others, wide)
                parts[label] = np.concatenate([ours, others])
        return replace(self, values=np.concatenate([self.values, other.values]), **parts)


def _rows_of(part: Any, index: Any) -> Any:
    return tuple(part[i] for i in index) if isinstance(part, tuple) else None if part is None else part[index]


Samples = Table | Mapping[str, ArrayLike] | Sequence[Any]


def padded(operators: NDArray[np.str_], positions: int) -> NDArray[np.str_]:
    return np.pad(operators, ((0, 0), (0, positions - operators.shape[1])), constant_values="")


def as_table(samples: Samples, order: ArrayLike | None = None, base: Any = None) -> Table:
    """A table of a table, named columns, architectures, typed graphs, or lists of operator names.

    `order` and `base` are what `Table` says; base may also be a `Device`, or what else has
    `estimate(architecture, phase, length).value`, and is asked for a prefill of each architecture (`features` for another
    phase or length). Raises TypeError for anything else, ValueError for an empty list.
    """
    if isinstance(samples, Table):
        found = samples
    elif isinstance(samples, Mapping):
        columns = {str(name): np.asarray(column, dtype=np.float64) for name, column in samples.items()}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"named columns must be equally long: got lengths {sorted(lengths)}")
        found = Table(np.stack(list(columns.values()), axis=1), tuple(columns))
    else:
        samples = list(samples)
        found = _of_sequence(samples)
    if base is not None:
        found = replace(found, base=based(base, samples))
    return found if order is None else replace(found, order=np.asarray(order, dtype=np.float64))


def based(base: Any, samples: Any, phase: str = "prefill", length: Any = None) -> Floats:
    """What `Table.base` holds, of numbers or of a device that is asked about architectures."""
    if not hasattr(base, "estimate"):
        return np.asarray(base, dtype=np.float64)
    if not isinstance(samples, list) or not all(hasattr(sample, "genome") for sample in samples):
        raise TypeError("a device is a base of lists of architectures: got other samples; give one number for each")
    return np.array([base.estimate(sample, phase, length).value for sample in samples], dtype=np.float64)


def _of_sequence(samples: list[Any]) -> Table:
    if not samples:
        raise ValueError("a predictor needs samples: got an empty list")
    first = samples[0]
    if isinstance(first, TypedGraph):
        return Table(np.array([graph.numbers() for graph in samples]), TypedGraph.number_names, graphs=tuple(samples))
    if hasattr(first, "genome") and hasattr(first, "cost"):
        from .architectures import features

        return features(samples)
    if isinstance(first, (list, tuple)) and all(isinstance(name, str) for sample in samples for name in sample):
        wide = max(len(sample) for sample in samples)
        names = np.array([[*sample, *[""] * (wide - len(sample))] for sample in samples], dtype=np.str_)
        return Table(np.zeros((len(samples), 0)), (), names)
    raise TypeError("samples are a Table, a dict of named columns, or a list of architectures, of typed graphs or of lists "
                    f"of operator names: got a list of {type(first).__name__}")


def check_values(values: ArrayLike, rows: int, least: int = 2) -> Floats:
    """Measurements as float64[N]. Raises ValueError for the wrong count, too few, NaN, or all the same number."""
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (rows,):
        raise ValueError(f"one value per sample: got {rows} samples and values of shape {found.shape}")
    if rows < least:
        raise ValueError(f"a predictor needs at least {least} samples here: got {rows}; measure {least - rows} more")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise ValueError(f"values must be finite: got {found[bad[0]]} at sample {bad[0]} ({len(bad)} in all); measure those "
                         "again or leave them out")
    if found.max() == found.min():
        raise ValueError(f"all {rows} values are {found[0]:g}: constant measurements say nothing of the samples; look at the "
                         "timer's resolution, or measure more repeats or larger inputs")
    return found
