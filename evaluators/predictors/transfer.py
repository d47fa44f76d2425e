"""A new device from a few measured samples, with the help of devices already known.

Letters: N samples, S known devices (sources).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .conformal import fewest, margin
from .known_devices import KnownDevices, Part
from .posterior import climb, misfit
from .predictor import Prediction
from .table import Floats, Samples, as_table, check_values

__all__ = ["Transfer"]

CONSTANT = 25.0
START = ((0.0, 1.0), (-0.5, 1.0), (-1.5, 1.0))      # devices as measured, devices smoothed, noise: log deviations
FREEDOM_TO_ADAPT = 0.5      # log deviation of the new device's shares from what the known ones taught
PLAYED = 400                # rows that a known device is asked about while it plays the new one


class Fitted(NamedTuple):
    """A device's few measurements, standardised logarithms, with the parameters adapted to them."""

    part: Part
    parameters: Tensor
    inverse: Tensor
    solved: Tensor
    middle: float
    scale: float

    def left_out(self) -> tuple[Floats, Floats]:
        """Error and spread of each measurement without it."""
        own = self.inverse.diagonal()
        return (self.solved / own).numpy(), own.rsqrt().numpy()


class Transfer:
    """Learns from known devices what devices have in common; then few samples of a new one are enough.

    A new device's logarithms are a Gaussian process: a linear mixture of the known devices' logarithms, as measured and as a
    model of each smooths them, plus a rest of its own over the samples' parts, plus noise. How large each is is learned by
    letting every known device play the new one, and then adapted a little. HELP: Hardware-Adaptive Efficient
    Latency Prediction for NAS via Meta-Learning (Lee et al., 2021) set the task; the method here is a multi-task Gaussian
    process (Bonilla et al., 2008).

    Args:
        samples: measured on every known device.
        known: measurements by device, float64[N] each, at least two devices.
        seed: draws the rows that the learning looks at.

    `choose(count)` says which to measure, `fit(rows, values)` takes the measurements, `predict(rows)` answers. All that is
    used of a row in predicting it are its parts and its measurements on the known devices. Both also take samples that no
    known device measured: what the models of these devices say then stands for it, and how far it is off widens intervals.
    """

    def __init__(self, samples: Samples, known: Mapping[str, ArrayLike], seed: int = 0, rows: int = 40, repeats: int = 4):
        self.known = KnownDevices(as_table(samples).without_order(), known, seed)
        self.table, self.names, self.seed = self.known.table, self.known.names, seed
        own = self.known.prior
        self.prior = torch.tensor([*own, *START], dtype=torch.float64)
        self.prior[:len(own), 0] -= 0.5
        self.parameters = self._learn(min(rows, len(self.table)), repeats)

    def _learn(self, rows: int, repeats: int) -> Tensor:
        rng = np.random.default_rng(self.seed)
        tasks = []
        for device in range(len(self.names)):
            for _ in range(repeats):
                chosen = rng.choice(len(self.table), rows, replace=False)
                value = self.known.logs[chosen, device]
                if value.std() > 0:
                    part = self.known.read(chosen, self._others(device))
                    tasks.append((part, torch.from_numpy((value - value.mean()) / value.std())))

        def loss(found: Tensor) -> Tensor:
            fits = torch.stack([misfit(self._noisy(found, part), values) for part, values in tasks]).sum()
            return fits + _far(found, self.prior[:, 0], self.prior[:, 1])

        return climb(loss, self.prior[:, 0].clone(), 25)

    def _others(self, device: int) -> list[int]:
        return [other for other in range(len(self.names)) if other != device]

    def _covariance(self, parameters: Tensor, left: Part, right: Part) -> Tensor:
        shares = (2 * parameters[-3:]).exp()
        total = self.known.term.covariance(parameters[:-3], left.own, right.own) + CONSTANT
        for share, a, b in zip(shares[:2], left[1:3], right[1:3], strict=True):
            total = total + share * (a @ b.T) / a.shape[1]
        return total

    def _noisy(self, parameters: Tensor, part: Part) -> Tensor:
        shares = (2 * parameters[-3:]).exp()
        noise = shares[2] + 1e-6 + shares[0] * self.known.rest.diagonal().mean() * part.loose
        return self._covariance(parameters, part, part) + torch.diag(noise)

    def choose(self, count: int = 10, pool: int = 800, seed: int = 0) -> NDArray[np.int64]:
        """Rows whose measurement says most of all others: greedily, the largest fall of the summed variance.

        Of `pool` rows drawn at random. Nothing of the new device is needed.
        """
        if not 1 <= count <= min(pool, len(self.table)):
            raise ValueError(f"between 1 and {min(pool, len(self.table))} rows can be chosen: got {count}")
        rows = np.random.default_rng(seed).permutation(len(self.table))[:pool]
        part = self.known.read(rows)
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

    def fit(self, rows: ArrayLike | Samples, values: ArrayLike) -> Transfer:
        """The measurements of some rows, or of new samples, on the new device.

        Raises ValueError for fewer than three, NaN, or constant ones.
        """
        part, at = self._asked(rows)
        if at is not None and len(set(at.tolist())) < len(at):
            raise ValueError(f"rows are different ones of the {len(self.table)}: got {at.tolist()}")
        found = check_values(values, len(part.loose), 3)
        if found.min() <= 0:
            raise ValueError(f"measurements must be above 0: got {found.min():g}")
        self.fitted = self._adapted(part, np.log(found))
        self.scores = self._played(at, len(found))
        return self

    def _asked(self, asked: Any) -> tuple[Part, NDArray[np.int64] | None]:
        """Row numbers, or new samples, as the covariance reads them."""
        if asked is None:
            asked = np.arange(len(self.table))
        numbers = asked if isinstance(asked, np.ndarray) else np.asarray(asked) if _are_numbers(asked) else None
        if numbers is None:
            return self.known.read_new(as_table(asked).without_order()), None
        at = np.asarray(numbers, dtype=np.int64)
        if at.ndim != 1 or not len(at) or at.min() < 0 or at.max() >= len(self.table):
            raise ValueError(f"rows are different ones of the {len(self.table)}: got {at.tolist()}")
        return self.known.read(at), at

    def _adapted(self, part: Part, logs: Floats) -> Fitted:
        middle, scale = float(logs.mean()), float(logs.std())
        values = torch.from_numpy((logs - middle) / scale)

        def loss(now: Tensor) -> Tensor:
            return misfit(self._noisy(now, part), values) + _far(now, self.parameters, FREEDOM_TO_ADAPT)

        parameters = climb(loss, self.parameters, 20)
        inverse = torch.linalg.inv(self._noisy(parameters, part))
        return Fitted(part, parameters, inverse, inverse @ values, middle, scale)

    def _played(self, at: NDArray[np.int64] | None, count: int) -> Floats:
        """|error| / spread of every known device that plays the new one: from the same rows, or as many, others are told."""
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(self.table))[:min(count, len(self.table) // 2)] if at is None else at
        asked = np.setdiff1d(rng.permutation(len(self.table))[:PLAYED], rows)
        scores = [np.zeros(0)]
        for device in range(len(self.names) if len(asked) else 0):
            logs = self.known.logs[:, device]
            if logs[rows].std() > 0:
                fitted = self._adapted(self.known.read(rows, self._others(device)), logs[rows])
                mean, spread = self._believed(fitted, self.known.read(asked, self._others(device)))
                scores.append(np.abs((logs[asked] - fitted.middle) / fitted.scale - mean) / spread)
        return np.concatenate(scores)

    def _believed(self, fitted: Fitted, part: Part) -> tuple[Floats, Floats]:
        """Mean and spread of a device's standardised logarithms."""
        shares = (2 * fitted.parameters[-3:]).exp()
        cross = self._covariance(fitted.parameters, part, fitted.part)
        variance = torch.cat([self._covariance(fitted.parameters, piece, piece).diagonal() for piece in _pieces(part)])
        variance = (variance - ((cross @ fitted.inverse) * cross).sum(1)).clamp_min(0) + shares[2]
        if part.loose.any():        # of the devices' weights in the mixture: their square times what was not measured
            sources = fitted.part.measured
            share = shares[0] / sources.shape[1]
            weights = share * sources.T @ fitted.solved
            unsure = share * (torch.eye(len(weights), dtype=torch.float64) - share * sources.T @ fitted.inverse @ sources)
            variance = variance + part.loose * (self.known.rest * (torch.outer(weights, weights) + unsure)).sum()
        return (cross @ fitted.solved).numpy(), variance.sqrt().numpy()

    def predict(self, rows: ArrayLike | Samples | None = None, coverage: float = 0.9) -> Prediction:
        """Values of the new device for some rows, for new samples, or for all rows, with intervals.

        Their margin is the one that would have held for the known devices, each playing the new one from as few
        measurements. From `fewest(coverage)` on (nine for 0.9) it is the geometric mean of that and of the conformal one
        over the measured samples left out one by one, which alone swings from 44 % to 100 % held, so few are they.
        """
        if not hasattr(self, "fitted"):
            raise ValueError("predict needs measurements of the new device: call fit(rows, values) first")
        if not 0 < coverage < 1:
            raise ValueError(f"coverage lies between 0 and 1: got {coverage}")
        mean, spread = self._believed(self.fitted, self._asked(rows)[0])
        reach = float(np.quantile(self.scores, coverage)) if len(self.scores) else _normal(coverage)
        if len(self.fitted.solved) >= fewest(coverage):
            reach = (reach * margin(*self.fitted.left_out(), coverage)) ** 0.5
        middle, wide = self.fitted.middle + self.fitted.scale * mean, self.fitted.scale * reach * spread
        return Prediction(np.exp(middle), np.exp(middle - wide), np.exp(middle + wide))


def _are_numbers(asked: Any) -> bool:
    return isinstance(asked, (list, tuple, range)) and all(isinstance(row, (int, np.integer)) for row in asked)


def _far(parameters: Tensor, middle: Tensor, deviation: Tensor | float) -> Tensor:
    return 0.5 * (((parameters - middle) / deviation) ** 2).sum()


def _pieces(part: Part, size: int = 256) -> list[Part]:
    """The rows in pieces, so that no square of all of them is made."""
    own, *columns = part
    cuts = [slice(start, start + size) for start in range(0, len(part.loose), size)]
    return [Part([entry[c] for entry in own] if isinstance(own, list) else own[c], *(column[c] for column in columns))
            for c in cuts]


def _normal(coverage: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(0.5 + coverage / 2)
