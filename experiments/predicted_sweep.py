"""The same sweep with and without a predictor of its latencies, for the same wall time.

    python -m bodyplan.experiments.predicted_sweep --out runs/predicted_sweep [--minutes 5] [--seeds 2] [--predictor gaussian]
    python -m bodyplan.experiments.predicted_sweep --out runs/predicted_sweep --report

Two settings over the space of the first sweep, each with both arms one after the other:

    inherited   candidates judged by shared weights (60 steps) and two latencies, prefill and one more token
    alone       every candidate trained for 40 steps, one latency with a bound that half of random candidates break

Reference points and the bound come from a few measurements before the first arm, and are kept in `setting.json`. Every run
is a sweep in a directory of its own; what is there is not run again. Hypervolumes are of measured fronts: what was on one by
prediction is measured before the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bodyplan as bp
import numpy as np

from ..evaluators.latency import LatencyProbe
from ..search.results import Results
from .first_sweep import space

__all__ = ["SETTINGS", "main", "report", "run", "setting"]

SETTINGS = ("inherited", "alone")
ARMS = ("without", "with")
LENGTH, PROBES = 128, 16
SUPERNET_STEPS, STEPS = 60, 40


def setting(out: Path) -> dict[str, float]:
    """Reference latencies, 1.1 times the largest architecture's, and the median decode latency of random ones, in ms."""
    path = out / "setting.json"
    if not path.exists():
        searched = space()
        largest = searched.architecture(searched.largest())
        found = {f"{phase}_reference": 1.1 * _ms(largest, phase) for phase in ("prefill", "decode")}
        found["decode_bound"] = float(np.median([_ms(searched.sample(seed), "decode") for seed in range(PROBES)]))
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({key: float(f"{value:.4g}") for key, value in found.items()}, indent=1) + "\n")
    read: dict[str, float] = json.loads(path.read_text())
    return read


def _ms(architecture: bp.Architecture, phase: Any) -> float:
    return LatencyProbe(length=LENGTH, phase=phase, budget_ms=200.0).measured(architecture, architecture.build()).median_ms


def run(out: Path, kind: str, arm: str, seed: int, minutes: float, predictor: str) -> None:
    """One sweep, unless its directory is there."""
    directory = out / f"{kind}-{arm}-{seed}"
    if directory.exists():
        return
    given, decode = setting(out), bp.latency(length=LENGTH, phase="decode")
    common: dict[str, Any] = {
        "task": bp.tasks.text(length=LENGTH, batch=4), "hours": minutes / 60, "seed": seed, "tracking": False,
        "directory": directory, "predictor": predictor if arm == "with" else None, "quiet": True}
    if kind == "inherited":
        bp.Sweep(space(), objectives=["loss", bp.latency(length=LENGTH, phase="prefill"), decode], supernet=True,
                 supernet_steps=SUPERNET_STEPS, retrain=0, fidelity_sample=0,
                 reference=[8.0, given["prefill_reference"], given["decode_reference"]], **common).run()
    else:
        bp.Sweep(space(), objectives=["loss", decode <= given["decode_bound"]], steps=STEPS,
                 reference=[8.0, given["decode_bound"]], **common).run()


def report(out: Path) -> list[dict[str, Any]]:
    """A row for every sweep that is there: what it tried, measured and predicted, and its hypervolume."""
    rows = []
    for kind in SETTINGS:
        for directory in sorted(out.glob(f"{kind}-*")):
            results = Results.read(directory)
            predicted = sum(bool(trial.predicted) for trial in results.complete)
            within = sum(results.violation(trial) == 0 for trial in results.complete)
            rows.append({"sweep": directory.name, "tried": len(results.complete) + len(results.failed),
                         "within bounds": within, "measured": len(results.complete) - predicted, "predicted": predicted,
                         "not tried": len(results.screened), "on the front": len(results.front),
                         "hypervolume": float(f"{results.front.hypervolume():.5g}"), "notes": results.predictions})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.predicted_sweep")
    parser.add_argument("--out", type=Path, default=Path("runs/predicted_sweep"))
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time of each sweep, its training included")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--predictor", default="gaussian")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--report", action="store_true", help="only print what is there")
    asked = parser.parse_args(arguments)
    if not asked.report:
        for seed in range(asked.seeds):
            for kind in asked.settings:
                for arm in ARMS:
                    run(asked.out, kind, arm, seed, asked.minutes, asked.predictor)
    print(json.dumps(report(asked.out), indent=1))


if __name__ == "__main__":
    main()
