"""A new device from a few measured samples, with the help of devices already known.

Letters: N samples, S known devices (sources).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .additive import Additive
from .conformal import fewest, margin
from .gaussian import GaussianProcess
from .kernels import Graphs, Numbers, Positions, Term
from .posterior import climb, misfit
from .predictor import Prediction
from .table import Floats, Samples, Table, as_table, check_values

__all__ = ["Transfer"]

CONSTANT = 25.0
START = ((0.0, 1.0), (-0.5, 1.0), (-1.5, 1.0))      # devices as measured, devices smoothed, noise: log deviations
FREEDOM_TO_ADAPT = 0.5      # log deviation of the new device's shares from what the known ones taught


class Transfer:
    """Learns from known devices what devices have in common; then few samples of a new one are enough.

    A new device's logarithms are a Gaussian process: a linear mixture of the known devices' logarithms, as measured and as a
    model of each smooths them, plus a rest of its own over the samples' parts, plus noise. How large each is is learned by
    letting every known device play the new one, and then adapted a little. HELP: Hardware-Adaptive Efficient
    Latency Prediction for NAS via Meta-Learning (Lee et al., 2021) set the task; the method here is a multi-task Gaussian
    process (Bonilla et al., 2008).

    Args:
        samples: all that may be asked about, measured on every known device.
        known: measurements by device, float64[N] each, at least two devices.
        seed: draws the rows that the learning looks at.

    `choose(count)` says which to measure, `fit(rows, values)` takes the measurements, `predict(rows)` answers. All that is
    used of a row in predicting it are its parts and its measurements on the known devices.
    """

    def __init__(self, samples: Samples, known: Mapping[str, ArrayLike], seed: int = 0, rows: int = 40, repeats: int = 4):
        self.table = as_table(samples).without_order()
        if len(known) < 2:
            raise ValueError(f"a transfer needs at least two known devices: got {len(known)}; with none fit a Predictor")
        checked = {}
        for name, values in known.items():
            try:
                checked[name] = check_values(values, len(self.table), 20)
            except ValueError as error:
                raise ValueError(f"device {name!r}: {error}") from None
            if checked[name].min() <= 0:
                raise ValueError(f"device {name!r}: measurements must be above 0: got {checked[name].min():g}")
        self.names, self.seed = tuple(checked), seed
        logs = np.log(np.stack(list(checked.values()), axis=1))
        self.measured, self.smooth = _standard(logs), _standard(self._smoothed(logs))
        self.term = _own_term(self.table)
        own = self.term.fit(self.table)
        self.prior = torch.tensor([*own, *START], dtype=torch.float64)
        self.prior[:len(own), 0] -= 0.5
        self.parameters = self._learn(logs, min(rows, len(self.table)), repeats)

    def _smoothed(self, logs: Floats) -> Floats:
        """What a model of each device makes of all rows: a sum over positions, or a Gaussian process of 600 rows."""
        def model(values: Floats) -> Floats:
            if self.table.operators is not None:
                return Additive(pooled=False).fit(self.table, values).predict(self.table).mean
            some = np.random.default_rng(self.seed).permutation(len(self.table))[:600]
            fitted = self.table.rows(some)
            process = GaussianProcess([_own_term(fitted)], robust=False, searched=150)
            return process.fit(fitted, values[some]).predict(self.table).mean
        return np.stack([model(column) for column in logs.T], axis=1)

    def _learn(self, logs: Floats, rows: int, repeats: int) -> Tensor:
        rng = np.random.default_rng(self.seed)
        tasks = []
        for device in range(len(self.names)):
            sources = [other for other in range(len(self.names)) if other != device]
            for _ in range(repeats):
                chosen = rng.choice(len(self.table), rows, replace=False)
                value = logs[chosen, device]
                if value.std() > 0:
                    tasks.append((self._read(chosen, sources), torch.from_numpy((value - value.mean()) / value.std())))

        def loss(found: Tensor) -> Tensor:
            fits = torch.stack([misfit(self._noisy(found, part), values) for part, values in tasks]).sum()
            return fits + _far(found, self.prior[:, 0], self.prior[:, 1])

        return climb(loss, self.prior[:, 0].clone(), 25)

    def _read(self, rows: Any, sources: list[int] | None = None) -> tuple[Any, Tensor, Tensor]:
        """What the covariance needs of some rows: own parts, known devices as measured and smoothed, float64[N, S]."""
        chosen = slice(None) if sources is None else sources
        measured, smooth = self.measured[rows][:, chosen], self.smooth[rows][:, chosen]
        return self.term.read(self.table.rows(rows)), torch.from_numpy(measured), torch.from_numpy(smooth)

    def _covariance(self, parameters: Tensor, left: Any, right: Any) -> Tensor:
        shares = (2 * parameters[-3:]).exp()
        total = self.term.covariance(parameters[:-3], left[0], right[0]) + CONSTANT
        for share, a, b in zip(shares[:2], left[1:], right[1:], strict=True):
            total = total + share * (a @ b.T) / a.shape[1]
        return total

    def _noisy(self, parameters: Tensor, part: Any) -> Tensor:
        total = self._covariance(parameters, part, part)
        return total + ((2 * parameters[-1]).exp() + 1e-6) * torch.eye(len(total), dtype=torch.float64)

    def choose(self, count: int = 10, pool: int = 800, seed: int = 0) -> NDArray[np.int64]:
        """Rows whose measurement says most of all others: greedily, the largest fall of the summed variance.

        Of `pool` rows drawn at random. Nothing of the new device is needed.
        """
        if not 1 <= count <= min(pool, len(self.table)):
            raise ValueError(f"between 1 and {min(pool, len(self.table))} rows can be chosen: got {count}")
        rows = np.random.default_rng(seed).permutation(len(self.table))[:pool]
        part = self._read(rows)
        left = self._covariance(self.parameters, part, part)
        noise = (2 * self.parameters[-1]).exp()
        chosen: list[int] = []
        for _ in range(count):
            falls = (left ** 2).sum(0) / (left.diagonal() + noise)
            falls[chosen] = -1.0
            best = int(falls.argmax())
            chosen.append(best)
            left = left - torch.outer(left[:, best], left[best]) / (left[best, best] + noise)
        return np.asarray(rows[chosen], dtype=np.int64)

    def fit(self, rows: ArrayLike, values: ArrayLike) -> Transfer:
        """The measurements of some rows on the new device. Raises ValueError for fewer than three, NaN, or constant ones."""
        self.rows = np.asarray(rows, dtype=np.int64)
        if len(set(self.rows.tolist())) < len(self.rows) or self.rows.min() < 0 or self.rows.max() >= len(self.table):
            raise ValueError(f"rows are different ones of the {len(self.table)}: got {self.rows.tolist()}")
        found = check_values(values, len(self.rows), 3)
        if found.min() <= 0:
            raise ValueError(f"measurements must be above 0: got {found.min():g}")
        logs = np.log(found)
        self.middle, self.scale = float(logs.mean()), float(logs.std())
        self.values = torch.from_numpy((logs - self.middle) / self.scale)
        self.part = self._read(self.rows)

        def loss(now: Tensor) -> Tensor:
            return misfit(self._noisy(now, self.part), self.values) + _far(now, self.parameters, FREEDOM_TO_ADAPT)

        self.adapted = climb(loss, self.parameters, 20)
        self.inverse = torch.linalg.inv(self._noisy(self.adapted, self.part))
        return self

    def predict(self, rows: ArrayLike | None = None, coverage: float = 0.9) -> Prediction:
        """Values of the new device for some rows, or for all, with intervals.

        From `fewest(coverage)` measurements on (nine for 0.9) the intervals are conformal over the measured ones left out one
        by one; so few make them wide, and rows that `choose` picked are not drawn at random: take them as a guide.
        Below, they are the process's own.
        """
        if not hasattr(self, "inverse"):
            raise ValueError("predict needs measurements of the new device: call fit(rows, values) first")
        part = self._read(np.arange(len(self.table)) if rows is None else np.asarray(rows, dtype=np.int64))
        cross = self._covariance(self.adapted, part, self.part)
        solved, noise = self.inverse @ self.values, float((2 * self.adapted[-1]).exp())
        variance = torch.cat([self._covariance(self.adapted, piece, piece).diagonal() for piece in _pieces(part)])
        spread = (variance - ((cross @ self.inverse) * cross).sum(1)).clamp_min(0).add(noise).sqrt().numpy()
        left_out = (solved / self.inverse.diagonal()).numpy(), self.inverse.diagonal().rsqrt().numpy()
        reach = margin(*left_out, coverage) if len(self.rows) >= fewest(coverage) else _normal(coverage)
        mean = self.middle + self.scale * (cross @ solved).numpy()
        wide = self.scale * reach * spread
        return Prediction(np.exp(mean), np.exp(mean - wide), np.exp(mean + wide))


def _own_term(table: Table) -> Term:
    return Positions() if table.operators is not None else Graphs() if table.graphs is not None else Numbers()


def _standard(columns: Floats) -> Floats:
    found: Floats = (columns - columns.mean(axis=0)) / np.maximum(columns.std(axis=0), 1e-12)
    return found


def _far(parameters: Tensor, middle: Tensor, deviation: Tensor | float) -> Tensor:
    return 0.5 * (((parameters - middle) / deviation) ** 2).sum()


def _pieces(part: tuple[Any, Tensor, Tensor], size: int = 256) -> list[Any]:
    """The rows in pieces, so that no square of all of them is made."""
    own, measured, smooth = part
    cuts = [slice(start, start + size) for start in range(0, len(measured), size)]
    return [([entry[c] for entry in own] if isinstance(own, list) else own[c], measured[c], smooth[c]) for c in cuts]


def _normal(coverage: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(0.5 + coverage / 2)
