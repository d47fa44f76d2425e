"""Measured on this machine: do two processes rank the same, and does a predictor know what it did not see.

    python -m bodyplan.experiments.device_study --out runs/device_study [--device cpu] [--candidates 200] [--twice 30]
    python -m bodyplan.experiments.device_study --out runs/device_study --report

Networks of the design page's space at 256 tokens, batch 1, one thread: a prefill, and one more token. `--twice` of them are
measured in two further processes, in other orders, all in rounds; the rest of the study fits predictors on half of the
candidates and compares them with what was measured of the other half. Measurements are profiles, one per process and phase;
the same command makes the rounds that are missing. The second command prints the study from them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluators.latency import Conditions, Profile, profile_models
from ..evaluators.predictors import Predictor, features
from ..space.genome import Genome
from .bench_candidate import LENGTH, design_space

__all__ = ["PHASES", "main", "measure", "report"]

PHASES = ("prefill", "decode")
RUNS = ("first", "second", "all")
NEAR = 0.1          # of the measured value: what counts as near
SPLITS = 10
ROUNDS = 5          # each measures every network once, minutes apart from the others; their median counts
BUDGET_MS = 100.0   # of repeats in a round: twice what a sweep takes for a candidate


def measure(out: Path, device: str, numbers: Sequence[int], run: str, rounds: int = ROUNDS) -> None:
    """Measure the architectures of these numbers, in each round in another order, until the run's profiles have as many
    rounds; they are kept after every one."""
    space = design_space()
    for phase in PHASES:
        path = out / f"{run}_{phase}.json"
        under = Conditions(length=LENGTH, phase=phase, budget_ms=BUDGET_MS)
        while (done := len(Profile.load(path).sessions) if path.exists() else 0) < rounds:
            order = random.Random(f"{run} {done}").sample(list(numbers), len(numbers))
            found = profile_models([space.sample(number) for number in order], device, under, f"device_study, {run}")
            (Profile.load(path).merge(found) if done else found).save(path, overwrite=True)


def middles(profile: Profile) -> dict[str, dict[str, Any]]:
    """By hash: the genome, the median over the rounds, that of the clock's times, and how many rounds were noisy."""
    rows: dict[str, list[Any]] = {}
    for row in profile.models:
        rows.setdefault(row["hash"], []).append(row)
    return {name: {"genome": some[0]["genome"], "ms": float(np.median([row["median_ms"] for row in some])),
                   "clock_ms": float(np.median([row.get("clock_ms", row["median_ms"]) for row in some])),
                   "noisy": sum(bool(row.get("noisy")) for row in some)} for name, some in rows.items()}


def report(out: Path, model: Any = "auto") -> dict[str, Any]:
    """Rank correlations of the two processes, and how near predictions of a model come over splits in half.

    Raises ValueError where nothing was measured, or on several machines.
    """
    found: dict[str, Any] = {}
    every: Profile | None = None
    for phase in PHASES:
        runs = {run: Profile.load(path) for run in RUNS if (path := out / f"{run}_{phase}.json").is_file()}
        for profile in runs.values():
            every = profile if every is None else every.merge(profile)
        times = {run: middles(profile) for run, profile in runs.items()}
        found[phase] = {**_repeated(times), **_predicted(times.get("all", {}), model, phase)}
    if every is None:
        raise ValueError(f"a report needs measurements: got none in {out}; run the study first")
    fingerprint = every.sessions[0]["fingerprint"]
    return {"machine": f"{every.device['name']}, torch {fingerprint['torch']}",
            "load": sorted(session["load_after"] for session in every.sessions), **found}


def _repeated(times: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    first, second = times.get("first", {}), times.get("second", {})
    both = sorted(first.keys() & second.keys())
    if len(both) < 3:
        return {}
    one, two = (np.array([run[each]["ms"] for each in both]) for run in (first, second))
    clocked = spearmanr(*([run[each]["clock_ms"] for each in both] for run in (first, second))).statistic
    change = np.abs(two / one - 1)
    return {"measured twice": len(both), "spearman": float(spearmanr(one, two).statistic),
            "spearman by the clock": float(clocked), "median change": float(np.median(change)),
            "largest change": float(change.max())}


def _predicted(rows: dict[str, Any], model: Any, phase: str) -> dict[str, Any]:
    """Means over splits: shares of the other half within a tenth, and inside the intervals."""
    if len(rows) < 40:
        return {}
    space = design_space()
    table = features([space.architecture(Genome.from_json(row["genome"])) for row in rows.values()], LENGTH, phase)
    values = np.array([row["ms"] for row in rows.values()])
    near, held, error = [], [], []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(values))
        train, test = order[:len(order) // 2], order[len(order) // 2:]
        found = Predictor(model, seed=seed).fit(table.rows(train), values[train]).predict(table.rows(test))
        apart = np.abs(found.value / values[test] - 1)
        near.append(float((apart <= NEAR).mean()))
        error.append(float(apart.mean()))
        held.append(float(((found.low <= values[test]) & (values[test] <= found.high)).mean()))
    return {"candidates": len(values), "fitted on": len(values) // 2,
            "noisy": sum(row["noisy"] for row in rows.values()),
            "within 10 %": [float(np.mean(near)), min(near), max(near)],
            "held by 90 % intervals": [float(np.mean(held)), min(held), max(held)], "mean error": float(np.mean(error))}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.device_study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/device_study"), help="the folder of the study")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--candidates", type=int, default=200, help="architectures that predictors are fitted on and held to")
    parser.add_argument("--twice", type=int, default=30, help="architectures that two further processes measure")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often everything is measured")
    parser.add_argument("--run", help="measure only this run, in this process")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    asked = parser.parse_args(arguments)
    counts = dict(zip(RUNS, (asked.twice, asked.twice, asked.candidates), strict=True))
    if asked.run is not None and asked.run not in counts:
        parser.error(f"a run is one of {', '.join(counts)}: got {asked.run!r}")
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.run is not None:
        measure(asked.out, asked.device, range(counts[asked.run]), asked.run, asked.rounds)
        return
    if not asked.report:
        for run in counts:
            subprocess.run([sys.executable, "-m", "bodyplan.experiments.device_study", "--out", str(asked.out), "--device",
                            asked.device, "--candidates", str(asked.candidates), "--twice", str(asked.twice), "--rounds",
                            str(asked.rounds), "--run", run], check=True)
    print(json.dumps(report(asked.out), indent=1))


if __name__ == "__main__":
    main()
