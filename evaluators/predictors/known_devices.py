"""What is known of samples from devices that measured others: their numbers, and what models of them say.

Letters: N samples, S known devices (sources).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .additive import Additive
from .gaussian import GaussianProcess
from .kernels import Graphs, Numbers, Positions, Term
from .table import Floats, Table, check_values

__all__ = ["KnownDevices", "Part", "own_term"]


class Part(NamedTuple):
    """What a covariance needs of some samples: their own parts as a term reads them, what known devices measured and what
    models of these devices say (float64[N, S] each, standardised), and 1 where nothing was measured and the model's word
    stands for it (float64[N])."""

    own: Any
    measured: Tensor
    smooth: Tensor
    loose: Tensor


class KnownDevices:
    """Samples with measurements on every known device, and a model of each device for samples that have none.

    Attributes:
        logs: float64[N, S], logarithms of the measurements. names: of the devices.
        rest: float64[S, S], how far measurements lie from the models, as a covariance over devices, standardised.
    """

    def __init__(self, table: Table, known: Mapping[str, ArrayLike], seed: int):
        if len(known) < 2:
            raise ValueError(f"a transfer needs at least two known devices: got {len(known)}; with none fit a Predictor")
        checked = {}
        for name, values in known.items():
            try:
                checked[name] = check_values(values, len(table), 20)
            except ValueError as error:
                raise ValueError(f"device {name!r}: {error}") from None
            if checked[name].min() <= 0:
                raise ValueError(f"device {name!r}: measurements must be above 0: got {checked[name].min():g}")
        self.table, self.names = table, tuple(checked)
        self.logs: Floats = np.log(np.stack(list(checked.values()), axis=1))
        self.models = [_modelled(table, column, seed) for column in self.logs.T]
        smooth = self._smoothed(table)
        self.places = [(columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-12)) for columns in (self.logs, smooth)]
        self.measured, self.smooth = (_standard(columns, *place)
                                      for columns, place in zip((self.logs, smooth), self.places, strict=True))
        apart = (self.logs - smooth) / self.places[0][1]
        self.rest = torch.from_numpy(apart.T @ apart / len(table))
        self.term = own_term(table)
        self.prior = self.term.fit(table)

    def _smoothed(self, table: Table) -> Floats:
        return np.stack([model(table) for model in self.models], axis=1)

    def read(self, rows: Any, sources: list[int] | None = None) -> Part:
        """Some rows of the table, as some of the devices see them; all without `sources`."""
        chosen = slice(None) if sources is None else sources
        measured, smooth = (torch.from_numpy(columns[rows][:, chosen]) for columns in (self.measured, self.smooth))
        return Part(self.term.read(self.table.rows(rows)), measured, smooth, torch.zeros(len(measured), dtype=torch.float64))

    def read_new(self, table: Table) -> Part:
        """Samples that no known device measured. Raises ValueError where they lack what the table has."""
        if table.names != self.table.names:
            raise ValueError(f"samples need the columns of those that are known, {self.table.names}: got {table.names}")
        for part in ("operators", "graphs"):
            if getattr(self.table, part) is not None and getattr(table, part) is None:
                raise ValueError(f"samples need {part}, as those that are known have them")
        said = self._smoothed(table)
        measured, smooth = (torch.from_numpy(_standard(said, *place)) for place in self.places)
        return Part(self.term.read(table), measured, smooth, torch.ones(len(said), dtype=torch.float64))


def own_term(table: Table) -> Term:
    return Positions() if table.operators is not None else Graphs() if table.graphs is not None else Numbers()


def _modelled(table: Table, logs: Floats, seed: int) -> Callable[[Table], Floats]:
    """What a model of a device makes of any samples: a sum over positions, or a Gaussian process of 600 rows."""
    if table.operators is not None:
        summed = Additive(pooled=False).fit(table, logs)
        return lambda asked: summed.predict(asked).mean
    some = np.random.default_rng(seed).permutation(len(table))[:600]
    fitted = table.rows(some)
    process = GaussianProcess([own_term(fitted)], robust=False, searched=150).fit(fitted, logs[some])
    return lambda asked: process.predict(asked).mean


def _standard(columns: Floats, middle: Floats, spread: Floats) -> Floats:
    found: Floats = (columns - middle) / spread
    return found
