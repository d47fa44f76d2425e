"""What the costs of an architecture take: its formulas, and all columns of its workload.

    python -m bodyplan.experiments.bench_cost [--candidates 2000]
    python -m bodyplan.experiments.bench_cost --peaks [--candidates 20]

One core, the space of the design page. `cost` is parameters, multiply-adds and states; `workload` is every operator with
its transforms, scans, element-wise work, bytes and peak. Of a workload, what is new is counted once: `new_ms` is the mean
over networks from none seen, `ms` the median once all have been. The aim is 0.2 ms. Prints one JSON object.

With `--peaks`: the peak of activations as a workload predicts it and as one pass takes it on this CPU (bytes of the tensors
that live at once), of the tiny member of every preset and of networks of that space. Prints a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import presets
from ..evaluators.costing import workload
from ..evaluators.costing.single import inputs_of
from ..evaluators.devices import device_fingerprint, on_threads
from ..evaluators.latency.memory import LiveBytes
from .bench_candidate import LENGTH, design_space

__all__ = ["AIM_MS", "main", "measure", "peaks", "table_of_peaks"]

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


def peaks(architecture: Any, length: int = 128, batch: int = 1) -> tuple[float, float]:
    """Bytes of activations that live at once in a prefill: predicted, and measured on this CPU."""
    embed, model = architecture.plan.embed, architecture.build(seed=0).eval()
    seen = length if any(hasattr(embed, name) for name in ("vocab", "features", "steps")) else architecture.default_length
    given = inputs_of(embed, architecture.plan.width, seen, batch, torch.device("cpu"))
    if given is None:
        given = (torch.randint(embed.vocab, (batch, length), generator=torch.Generator().manual_seed(0)),)
    with torch.no_grad(), LiveBytes() as live:
        model(*given)
    return float(workload(architecture, seen, batch=batch).peak_bytes), float(live.peak)


def table_of_peaks(candidates: int = 20) -> str:
    """Predicted over measured, the lowest first."""
    space, found = design_space(), {}
    for name in presets.__all__:
        found[f"presets.{name}"] = peaks(getattr(presets, name).fixed("tiny"))
    for seed in range(candidates):
        found[f"design space, {seed}"] = peaks(space.sample(seed), LENGTH)
    rows = sorted((predicted / measured, name, predicted, measured) for name, (predicted, measured) in found.items())
    return "\n".join([f"{'network':<28}{'predicted':>12}{'measured':>12}{'ratio':>7}",
                      *(f"{name:<28}{predicted:>12,.0f}{measured:>12,.0f}{ratio:>7.2f}"
                        for ratio, name, predicted, measured in rows)])


def _timed(call: Callable[[Any], Any], architecture: Any) -> float:
    begun = time.perf_counter()
    call(architecture)
    return 1e3 * (time.perf_counter() - begun)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.bench_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=2000, help="architectures")
    parser.add_argument("--peaks", action="store_true", help="compare predicted with measured memory instead")
    asked = parser.parse_args(arguments)
    with on_threads(1):
        print(table_of_peaks(asked.candidates) if asked.peaks else json.dumps(measure(asked.candidates)))


if __name__ == "__main__":
    main()
