"""Whether a machine changed while it measured: shifts between blocks of rows, found and said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .table import Floats

__all__ = ["Drift", "Session", "find_drift"]


@dataclass(frozen=True)
class Session:
    """Rows measured under the same conditions. first, last: of the order given, both included. shift: the median rest of
    these rows, less the median of all; of logarithms, 0.1 means about 10 % slower. spread: scaled median absolute deviation.
    """

    first: float
    last: float
    count: int
    shift: float
    spread: float


@dataclass(frozen=True)
class Drift:
    """What `find_drift` found: one session means none. largest: the difference between two sessions' shifts."""

    sessions: tuple[Session, ...]

    @property
    def largest(self) -> float:
        shifts = [session.shift for session in self.sessions]
        return max(shifts) - min(shifts)

    def __str__(self) -> str:
        if len(self.sessions) == 1:
            return "no drift found"
        lines = [f"{len(self.sessions)} sessions, up to {self.largest:.1%} apart; measure again, or predict with the order"]
        return "\n".join(lines + [f"  {s.first:g} to {s.last:g} ({s.count} rows): {s.shift:+.1%}, spread {s.spread:.1%}"
                                  for s in self.sessions])


def find_drift(order: Any, rests: Any, shortest: int = 10, strictness: float = 10.0) -> Drift:
    """The sessions in what a predictor leaves over.

    order: when each was measured; rests: value less prediction, as logarithms for shares. Splits in two where the sums of
    ranks on both sides differ most, again in each half, for as long as the evidence for the split, Z**2 / 2, exceeds
    `strictness` and both sides have at least `shortest` rows. Ranks, so that a few outliers make no session. A split must
    also move the median by half of the spread. Binary segmentation by Wilcoxon's statistic (Pettitt, 1979). Raises
    ValueError for rests that are not finite or not one per row.
    """
    at, rest = np.asarray(order, dtype=np.float64), np.asarray(rests, dtype=np.float64)
    if at.shape != rest.shape or at.ndim != 1 or not (np.isfinite(at).all() and np.isfinite(rest).all()):
        raise ValueError(f"drift is looked for in one finite rest per row: got shapes {at.shape} and {rest.shape}")
    if len(at) < 2 * shortest:
        raise ValueError(f"drift needs at least {2 * shortest} rows: got {len(at)}")
    by = np.argsort(at, kind="stable")
    at, rest = at[by], rest[by]
    cuts = [0, *sorted(_splits(rest, 0, shortest, strictness)), len(at)]
    middle = float(np.median(rest))
    return Drift(tuple(_session(at[a:b], rest[a:b], middle) for a, b in zip(cuts, cuts[1:], strict=False)))


def _session(at: Floats, rest: Floats, middle: float) -> Session:
    median = float(np.median(rest))
    return Session(float(at[0]), float(at[-1]), len(at), median - middle, _spread(rest))


def _spread(rest: Floats) -> float:
    return 1.4826 * float(np.median(np.abs(rest - np.median(rest))))


def _splits(rest: Floats, start: int, shortest: int, strictness: float) -> list[int]:
    """Row numbers, from `start` on, where another session begins."""
    count = len(rest)
    if count < 2 * shortest:
        return []
    ranks = np.argsort(np.argsort(rest, kind="stable"), kind="stable") + 1.0
    left = np.arange(shortest, count - shortest + 1)
    sums = np.cumsum(ranks)[left - 1]
    z = np.abs(sums - left * (count + 1) / 2) / np.sqrt(left * (count - left) * (count + 1) / 12)
    best = int(np.argmax(z))
    at = int(left[best])
    before, after = rest[:at], rest[at:]
    moved = abs(float(np.median(before) - np.median(after)))
    if z[best] ** 2 / 2 < strictness or moved < 0.5 * min(_spread(before), _spread(after)):
        return []
    return [*_splits(before, start, shortest, strictness), start + at, *_splits(after, start + at, shortest, strictness)]
