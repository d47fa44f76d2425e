"""Samples as a predictor sees them: named numbers, an operator at every position, a graph, the order of measuring.

Letters: N samples, D named numbers, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .typed_graph import TypedGraph

__all__ = ["Floats", "Samples", "Table", "as_table", "check_values"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """What is known of N samples; at least one of numbers, operators and graphs.

    Attributes:
        values: float64[N, D], finite.
        names: of the D columns, each once.
        operators: strings[N, P], the operator at each position; "" where a sample has none there.
        graphs: one `TypedGraph` per sample.
        order: float64[N] or None: when each was measured, as a row number or a time; only differences count.
    """

    values: Floats
    names: tuple[str, ...] = ()
    operators: NDArray[np.str_] | None = None
    graphs: tuple[TypedGraph, ...] | None = None
    order: Floats | None = None

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
        for label, part in (("operators", self.operators), ("graphs", self.graphs), ("order", self.order)):
            if part is not None and len(part) != rows:
                raise ValueError(f"every part of a table has its {rows} rows: got {len(part)} in {label}")
        if self.order is not None and not np.isfinite(self.order).all():
            raise ValueError("the order of measuring must be finite numbers; leave it out where it is not known")
        if not self.names and self.operators is None and self.graphs is None:
            raise ValueError("a table needs numbers, operators or graphs: got none; name at least one column")

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Any) -> Table:
        """The rows of an index array or a mask, in its order."""
        index = np.arange(len(self))[index]
        return Table(self.values[index], self.names, None if self.operators is None else self.operators[index],
                     None if self.graphs is None else tuple(self.graphs[i] for i in index),
                     None if self.order is None else self.order[index])

    def without_order(self) -> Table:
        return replace(self, order=None)

    def then(self, other: Table) -> Table:
        """Both, one below the other. Parts that one of them lacks are left out; positions are padded."""
        if self.names != other.names:
            raise ValueError(f"both tables need the same columns: got {self.names} and {other.names}")
        operators = graphs = order = None
        if self.operators is not None and other.operators is not None:
            wide = max(self.operators.shape[1], other.operators.shape[1])
            operators = np.concatenate([padded(self.operators, wide), padded(other.operators, wide)])
        if self.graphs is not None and other.graphs is not None:
            graphs = self.graphs + other.graphs
        if self.order is not None and other.order is not None:
            order = np.concatenate([self.order, other.order])
        return Table(np.concatenate([self.values, other.values]), self.names, operators, graphs, order)


Samples = Table | Mapping[str, ArrayLike] | Sequence[Any]


def padded(operators: NDArray[np.str_], positions: int) -> NDArray[np.str_]:
    return np.pad(operators, ((0, 0), (0, positions - operators.shape[1])), constant_values="")


def as_table(samples: Samples, order: ArrayLike | None = None) -> Table:
    """A table of a table, named columns, architectures, typed graphs, or lists of operator names.

    `order` is what `Table.order` says. Raises TypeError for anything else, ValueError for an empty list.
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
        found = _of_sequence(list(samples))
    return found if order is None else replace(found, order=np.asarray(order, dtype=np.float64))


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
