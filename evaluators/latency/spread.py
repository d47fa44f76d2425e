"""What a row of times says: its median with an interval, its outliers, and whether the machine was quiet.

Nothing is thrown away: the median is that of all times, outliers included, and how many there were stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

__all__ = ["Measurement", "bootstrap_median", "outliers", "quietest", "summary"]

RESAMPLES = 200   # enough for two digits of an interval; more cost milliseconds per candidate
WIDE = 0.1        # width of the interval, as a share of the median, from which a measurement is noisy
MOVED = 0.1       # change of the median between the halves of the times from which the machine drifts
FENCE = 3.0       # interquartile ranges beyond the quartiles from which a time is an outlier (Tukey's far out)
LEAST_FENCE = 0.05


@dataclass(frozen=True)
class Measurement:
    """One measured number: milliseconds, `low` to `high` the bootstrap 95 % interval of the median.

    speed: of the machine while it measured, as a share of its usual one, where that was watched; all times but clock_ms
    are then those of the usual speed, and clock_ms is the median by the clock.

    warmup: calls before the clock counted. settled: whether the times had stopped falling when it began. outliers: how
    many of `repeats` lay far off; they are part of the median. slowest_ms: the longest. drift: by which share the median
    of the second half differs from that of the first. noisy: what is wrong, in words, empty on a quiet machine. attempts:
    how often it was measured until it was quiet, or given up; the numbers are those of the quietest alone.
    peak_bytes and energy_mj are None where the machine cannot tell.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    warmup: int
    settled: bool
    outliers: int
    slowest_ms: float
    drift: float
    noisy: str = ""
    attempts: int = 1
    peak_bytes: int | None = None
    energy_mj: float | None = None
    clock_ms: float | None = None
    speed: float | None = None

    @property
    def note(self) -> str:
        """How the number came about, in one line; it says so where the machine was not quiet."""
        parts = [f"median of {self.repeats} after {self.warmup} warm-up calls"]
        if self.outliers:
            parts.append(f"{self.outliers} outliers, up to {self.slowest_ms:.3g} ms")
        if self.attempts > 1:
            parts.append(f"the quietest of {self.attempts} attempts")
        if self.speed is not None:
            parts.append(f"at usual speed; the machine ran at {self.speed:.2f} of it: {self.clock_ms:.4g} ms by the clock")
        return "; ".join([*parts, f"noisy: {self.noisy}"] if self.noisy else parts)


def summary(times: Sequence[float], warmup: int = 0, settled: bool = True) -> Measurement:
    """The measurement that these times in milliseconds make.

    Raises:
        ValueError: no times, or one that is not a finite number of at least 0.
    """
    if not len(times):
        raise ValueError("a measurement needs times: got none; call it at least once")
    wrong = [t for t in times if not (math.isfinite(t) and t >= 0)]
    if wrong:
        raise ValueError(f"times are finite and not negative: got {wrong[0]!r} among {len(times)}; the clock or the call "
                         "is broken")
    ordered = sorted(float(t) for t in times)
    median, (low, high) = middle(ordered), bootstrap_median(times)
    half = len(times) // 2
    first, second = (middle(sorted(part)) for part in (times[:half] or times, times[half:]))
    drift = (second - first) / first if first else 0.0
    return Measurement(median, low, high, len(times), warmup, settled, len(outliers(times)), ordered[-1], drift,
                       _complaint(median, low, high, drift, settled, len(times)))


def quietest(once: Callable[[], Measurement], attempts: int) -> Measurement:
    """Measure again while the machine is not quiet, `attempts` times at most; the one with the narrowest interval.

    Chosen by its interval, never by its median, so that a lucky fast one is not preferred.
    """
    found = once()
    for number in range(2, attempts + 1):
        if not found.noisy:
            break
        found = replace(min(found, once(), key=_loudness), attempts=number)
    return found


def _loudness(found: Measurement) -> tuple[bool, float]:
    return bool(found.noisy), (found.high_ms - found.low_ms) / found.median_ms if found.median_ms else 0.0


def middle(ordered: Sequence[float]) -> float:
    """The median of sorted numbers."""
    n = len(ordered)
    return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def outliers(times: Sequence[float]) -> list[int]:
    """Positions of the times more than three interquartile ranges, and 5 % of the median, beyond the quartiles.

    Equal times have none. Fewer than four cannot tell what is usual: none.
    """
    if len(times) < 4:
        return []
    values = torch.as_tensor(times, dtype=torch.float64)
    low, median, high = (float(q) for q in torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)))
    margin = max(FENCE * (high - low), LEAST_FENCE * median)
    return [i for i, t in enumerate(times) if t > high + margin or t < low - margin]


def bootstrap_median(times: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the median over resamples; the same times give the same interval."""
    values = torch.as_tensor(times, dtype=torch.float64).cpu()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(values), (resamples, len(values)), generator=generator)
    medians = torch.quantile(values[rows], 0.5, dim=1)
    low, high = torch.quantile(medians, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def _complaint(median: float, low: float, high: float, drift: float, settled: bool, repeats: int) -> str:
    found = []
    if median and (high - low) / median > WIDE:
        found.append(f"the interval is {100 * (high - low) / median:.0f} % of the median wide")
    if repeats >= 20 and abs(drift) > MOVED:
        found.append(f"the median moved by {100 * drift:+.0f} % while measuring")
    if not settled:
        found.append("the warm-up never settled")
    return ", ".join(found)
