"""What the costs of an architecture take: its formulas, and all columns of its workload.

    python -m bodyplan.experiments.bench_cost [--candidates 2000]

One core, the space of the design page. `cost` is parameters, multiply-adds and states; `workload` is every operator with
its transforms, scans, element-wise work, bytes and peak. Of a workload, what is new is counted once: `new_ms` is the mean
over networks from none seen, `ms` the median once all have been. The aim is 0.2 ms. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..evaluators.costing import workload
from ..evaluators.devices import device_fingerprint, on_threads
from .bench_candidate import LENGTH, design_space

__all__ = ["AIM_MS", "main", "measure"]

AIM_MS = 0.2


def measure(candidates: int = 2000) -> dict[str, Any]:
    """Milliseconds per architecture: medians with bootstrap 95 % intervals, after a pass over all of them."""
    space = design_space()
    architectures = [space.sample(seed) for seed in range(candidates)]
    calls: dict[str, Callable[[Any], Any]] = {"cost": lambda a: a.cost(LENGTH), "workload": lambda a: workload(a, LENGTH)}
    found: dict[str, Any] = {"candidates": candidates, "aim_ms": AIM_MS, "machine": device_fingerprint("cpu")}
    gc.collect()
    for name, call in calls.items():
        first, times = ([_timed(call, each) for each in architectures] for _ in range(2))
        draws = np.random.default_rng(0).choice(times, (500, len(times)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        found[name] = {"ms": float(np.median(times)), "low": float(low), "high": float(high),
                       "new_ms": float(np.mean(first)), "met": bool(high <= AIM_MS)}
    return found


def _timed(call: Callable[[Any], Any], architecture: Any) -> float:
    begun = time.perf_counter()
    call(architecture)
    return 1e3 * (time.perf_counter() - begun)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.bench_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=2000, help="architectures")
    asked = parser.parse_args(arguments)
    with on_threads(1):
        print(json.dumps(measure(asked.candidates)))


if __name__ == "__main__":
    main()
