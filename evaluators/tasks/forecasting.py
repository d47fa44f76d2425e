"""Forecasts of time series: some steps of several variates in, the next steps of all out.

Legend: B batch, L steps seen, S steps ahead, V variates, N steps of the whole series.
"""

from __future__ import annotations

import csv
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import SPLITS, Batch, Task, candidates, check_split, rng_seed
from .generated import check_whole

__all__ = ["ForecastingTask", "forecasting"]

STEPS = 6000                         # of a generated series
SHARES = (0.7, 0.8)                  # where validation begins, and the test
EPS = 1e-5


@dataclass(frozen=True)
class ForecastingTask(Task):
    """Settings of `forecasting`; use that function, which checks them."""

    path: str | None
    length: int
    horizon: int
    variates: int
    batch_size: int
    held_out_batches: int

    name: ClassVar[str] = "forecasting"
    metric: ClassVar[str] = "squared_error"
    unit: ClassVar[str] = "variances"

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """(inputs, targets): float32 (B, length, variates) and the (B, horizon, variates) after them."""
        check_split(split)
        series_NV = self._split(split)
        starts = self._starts(split, series_NV, step, seed)
        windows_BLV = series_NV[starts[:, None] + np.arange(self.length + self.horizon)]
        windows = torch.from_numpy(windows_BLV)
        return Batch(windows[:, :self.length].contiguous(), windows[:, self.length:].contiguous())

    def num_batches(self, split: str) -> int:
        """As many as `held_out_batches` says."""
        check_split(split, SPLITS[1:])
        return self.held_out_batches

    def forecast(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What a model's outputs mean: each variate in standard deviations of what was seen of it, from its mean."""
        mean_B1V = batch.inputs.mean(1, keepdim=True)
        spread_B1V = (batch.inputs.var(1, keepdim=True, correction=0) + EPS).sqrt()
        return mean_B1V + spread_B1V * outputs.float()

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean squared error of the forecast."""
        return (self.forecast(logits, batch) - batch.targets).square().mean()

    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """Squared errors, and the numbers that were forecast."""
        return float((self.forecast(logits, batch) - batch.targets).square().sum()), batch.targets.numel()

    def check(self, space_or_plan: Any) -> None:
        """The embedding must take the window, and the head give as many steps of all variates."""
        for embed in candidates(space_or_plan, "embed"):
            if getattr(embed, "steps", None) != self.length and getattr(embed, "features", None) != self.variates:
                raise ValueError(f"tasks.forecasting gives {self.length} steps of {self.variates} variates at embed: got "
                                 f"{embed}; use VariateEmbedding(steps={self.length}) or "
                                 f"FrameEmbedding(features={self.variates}, stack=1)")
            variates = None if hasattr(embed, "steps") else self.variates
            for head in candidates(space_or_plan, "head"):
                if (getattr(head, "horizon", None), getattr(head, "variates", None)) != (self.horizon, variates):
                    raise ValueError(f"tasks.forecasting asks for {self.horizon} steps at head: got {head} with {embed}; "
                                     f"use ForecastHead(horizon={self.horizon}, variates={variates})")

    def describe(self) -> str:
        """Where the series comes from, its size, windows and splits."""
        name = "leaders and followers (generated)" if self.path is None else self.path
        return (f"{self.horizon} steps of {self.variates} variates from {self.length}: {name}, {len(self._series()):,} "
                f"steps, the first {SHARES[0]:.0%} for training, the last {1 - SHARES[1]:.0%} for testing, squared error in "
                "variances")

    def digest(self) -> str:
        """SHA-256 of the series."""
        return hashlib.sha256(self._series().tobytes()).hexdigest()

    def _series(self) -> NDArray[np.float32]:
        if self.path is None:
            return _generated(self.variates, self.horizon)
        return _read(self.path, Path(self.path).stat().st_mtime_ns)

    def _split(self, split: str) -> NDArray[np.float32]:
        series_NV = self._series()
        first, second = (int(share * len(series_NV)) for share in SHARES)
        return {"train": series_NV[:first], "validation": series_NV[first:second], "test": series_NV[second:]}[split]

    def _starts(self, split: str, series_NV: NDArray[np.float32], step: int, seed: int) -> NDArray[np.int64]:
        """Random windows to train on; held-out ones spread evenly, in mixed order."""
        choices = len(series_NV) - self.length - self.horizon + 1
        if split == "train":
            return np.random.default_rng(rng_seed(seed, step)).integers(choices, size=self.batch_size)
        if not 0 <= step < self.held_out_batches:
            raise ValueError(f"{split} has {self.held_out_batches} batches of this task: got number {step}")
        spread = np.linspace(0, choices - 1, self.held_out_batches * self.batch_size).round().astype(np.int64)
        mixed = np.random.default_rng(0).permutation(spread)
        return mixed[step * self.batch_size:(step + 1) * self.batch_size]


def forecasting(path: str | Path | None = None, length: int = 96, horizon: int = 24, variates: int = 8, batch: int = 32,
                held_out_batches: int = 8) -> ForecastingTask:
    """Forecasts of a multivariate series, scored as the squared error in variances of the training split.

    Without a path the series is generated: half of the variates are random waves that their own past says little of for
    long, each of the others follows one of them, half of `horizon` to `horizon` steps behind, so that its forecast is to be
    read from the leader. Every variate has mean 0 and variance 1 in the training split, the first 70 %; validation are the
    next 10 %, the test is the rest, and no window crosses from one to another. A model gives each variate in standard
    deviations of what was seen of it, from its mean, as if it were normalised at both ends (Kim et al., 2022).

    Args:
        path: a file of comma-separated numbers, a row per step, a line of names first; columns of other things are left out.
        length: steps that are seen.
        horizon: steps that are forecast.
        variates: of a generated series, an even number; a file has its own.
        batch: windows per batch.
        held_out_batches: batches of a score.

    Raises:
        ValueError: a file that is missing, has no column of numbers or is too short; numbers below 1.
    """
    check_whole("forecasting", length=length, horizon=horizon, variates=variates, batch=batch,
                held_out_batches=held_out_batches)
    if path is None and variates % 2:
        raise ValueError(f"variates of a generated series are leaders and as many followers at tasks.forecasting: got "
                         f"{variates}; use {variates + 1}")
    where = None if path is None else str(_checked(Path(path)))
    count = variates if where is None else _read(where, Path(where).stat().st_mtime_ns).shape[1]
    task = ForecastingTask(where, length, horizon, count, batch, held_out_batches)
    shortest = min(len(task._split(split)) for split in SPLITS)
    if shortest < length + horizon:
        raise ValueError(f"every split has a window at tasks.forecasting: got {shortest} steps for length + horizon = "
                         f"{length + horizon}; use a longer series or shorter windows")
    return task


def _checked(path: Path) -> Path:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"tasks.forecasting reads a file that exists: {path} is missing; check the path")
    return path


@functools.lru_cache(maxsize=4)
def _generated(variates: int, horizon: int) -> NDArray[np.float32]:
    """Damped oscillators driven by noise, and copies of them that lag behind."""
    rng, leaders = np.random.default_rng(0), variates // 2
    period_K = rng.uniform(8, 24, leaders)
    turn_K, keep = 2 * np.pi / period_K, 0.9
    noise_NK = rng.normal(size=(STEPS + horizon, leaders))
    wave_NK = np.zeros_like(noise_NK)
    for n in range(2, len(wave_NK)):
        wave_NK[n] = 2 * keep * np.cos(turn_K) * wave_NK[n - 1] - keep**2 * wave_NK[n - 2] + noise_NK[n]
    lag_K = rng.integers((horizon + 1) // 2, horizon + 1, leaders)
    behind_NK = np.stack([wave_NK[horizon - lag:len(wave_NK) - lag, k] for k, lag in enumerate(lag_K)], 1)
    return _scaled(np.concatenate([wave_NK[horizon:], behind_NK], 1))


@functools.lru_cache(maxsize=4)
def _read(path: str, changed: int) -> NDArray[np.float32]:
    """The columns of a file that hold numbers alone."""
    with open(path, newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if row][1:]
    columns = [numbers for cells in zip(*rows, strict=False) if (numbers := _numbers(cells)) is not None]
    if not columns:
        raise ValueError(f"tasks.forecasting reads columns of numbers under a line of names: {path} has none")
    return _scaled(np.stack(columns, 1))


def _numbers(cells: tuple[str, ...]) -> NDArray[np.float64] | None:
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _scaled(series_NV: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean 0 and variance 1 in the training split; a variate that never changes there stays at 0."""
    train_NV = series_NV[:int(SHARES[0] * len(series_NV))]
    spread_V = train_NV.std(0)
    scaled: NDArray[np.float32] = ((series_NV - train_NV.mean(0)) / np.where(spread_V > 0, spread_V, 1)).astype(np.float32)
    return scaled
