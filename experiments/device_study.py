"""Measured on this machine: do two processes rank the same, and does a predictor know what it did not see.

    python -m bodyplan.experiments.device_study --out runs/device_study [--device cpu] [--candidates 200] [--twice 30]
    python -m bodyplan.experiments.device_study --out runs/device_study --report

Networks of the design page's space at 256 tokens, batch 1, one thread: a prefill, and one more token. `--twice` of them are
measured in two further processes, in other orders; the rest of the study fits predictors on half of the candidates and
compares them with what was measured of the other half. Measurements are lines of `measured.jsonl`; the same command goes on
where it was stopped. The second command prints the study from these lines.
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

from ..evaluators.devices import device_fingerprint
from ..evaluators.latency import LatencyProbe
from ..evaluators.predictors import Predictor, features
from .bench_candidate import LENGTH, design_space

__all__ = ["PHASES", "main", "measure", "report"]

PHASES = ("prefill", "decode")
ATTEMPTS = 3
NEAR = 0.1          # of the measured value: what counts as near
SPLITS = 3
FILE = "measured.jsonl"


def measure(out: Path, device: str, numbers: Sequence[int], run: str) -> None:
    """Measure the architectures of these numbers, in an order of the run's own, as far as lines are missing."""
    path = out / FILE
    known = {(line["run"], line["number"]) for line in _lines(out)}
    order = list(numbers)
    random.Random(run).shuffle(order)
    space = design_space()
    for number in order:
        if (run, number) in known:
            continue
        architecture = space.sample(number)
        model = architecture.build(seed=0).eval()
        line: dict[str, Any] = {"run": run, "number": number, "hash": architecture.hash, "device": device}
        for phase in PHASES:
            found = LatencyProbe(device, length=LENGTH, phase=phase).measured(architecture, model, ATTEMPTS)  # type: ignore[arg-type]
            line[phase] = {"ms": found.median_ms, "low": found.low_ms, "high": found.high_ms, "noisy": found.noisy}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "machine": device_fingerprint(device)}) + "\n")


def report(out: Path, model: Any = "auto") -> dict[str, Any]:
    """Rank correlations of the two processes, and how near predictions of a model come over splits in half.

    Raises ValueError where nothing was measured, or on several machines.
    """
    lines = _lines(out)
    if not lines:
        raise ValueError(f"a report needs measurements: got none in {out / FILE}; run the study first")
    machines = {line["machine"]["name"] for line in lines}
    if len(machines) > 1:
        raise ValueError(f"measurements of one machine belong together: {out / FILE} has {', '.join(sorted(machines))}")
    by_run: dict[str, dict[int, Any]] = {}
    for line in lines:
        by_run.setdefault(line["run"], {})[line["number"]] = line
    last = lines[-1]["machine"]
    return {"machine": f"{last['name']}, torch {last['torch']}", "load": [line["machine"]["load"] for line in lines][::50],
            **{phase: {**_repeated(by_run, phase), **_predicted(by_run.get("all", {}), phase, model)} for phase in PHASES}}


def _repeated(by_run: dict[str, dict[int, Any]], phase: str) -> dict[str, Any]:
    from scipy.stats import spearmanr

    first, second = by_run.get("first", {}), by_run.get("second", {})
    both = sorted(first.keys() & second.keys())
    if len(both) < 3:
        return {}
    one, two = (np.array([run[n][phase]["ms"] for n in both]) for run in (first, second))
    return {"measured twice": len(both), "spearman": float(spearmanr(one, two).statistic),
            "median change": float(np.median(np.abs(two / one - 1))), "largest change": float(np.max(np.abs(two / one - 1)))}


def _predicted(lines: dict[int, Any], phase: str, model: Any) -> dict[str, Any]:
    """Means over splits: shares of the other half within a tenth, and inside the intervals."""
    if len(lines) < 40:
        return {}
    chosen, space = sorted(lines), design_space()
    table = features([space.sample(number) for number in chosen], LENGTH)
    values = np.array([lines[number][phase]["ms"] for number in chosen])
    near, held, error = [], [], []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(chosen))
        train, test = order[:len(order) // 2], order[len(order) // 2:]
        found = Predictor(model, seed=seed).fit(table.rows(train), values[train]).predict(table.rows(test))
        apart = np.abs(found.value / values[test] - 1)
        near.append(float((apart <= NEAR).mean()))
        error.append(float(apart.mean()))
        held.append(float(((found.low <= values[test]) & (values[test] <= found.high)).mean()))
    return {"candidates": len(chosen), "fitted on": len(chosen) // 2,
            "noisy": sum(bool(line[phase]["noisy"]) for line in lines.values()),
            "within 10 %": [float(np.mean(near)), min(near), max(near)],
            "held by 90 % intervals": [float(np.mean(held)), min(held), max(held)], "mean error": float(np.mean(error))}


def _lines(out: Path) -> list[dict[str, Any]]:
    path = out / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.device_study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/device_study"), help="the folder of the study")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--candidates", type=int, default=200, help="architectures that predictors are fitted on and held to")
    parser.add_argument("--twice", type=int, default=30, help="architectures that two further processes measure")
    parser.add_argument("--run", help="measure only this run, in this process")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    asked = parser.parse_args(arguments)
    counts = {"first": asked.twice, "second": asked.twice, "all": asked.candidates}
    if asked.run is not None and asked.run not in counts:
        parser.error(f"a run is one of {', '.join(counts)}: got {asked.run!r}")
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.run is not None:
        measure(asked.out, asked.device, range(counts[asked.run]), asked.run)
        return
    if not asked.report:
        for run in counts:
            subprocess.run([sys.executable, "-m", "bodyplan.experiments.device_study", "--out", str(asked.out), "--device",
                            asked.device, "--candidates", str(asked.candidates), "--twice", str(asked.twice), "--run", run],
                           check=True)
    print(json.dumps(report(asked.out), indent=1))


if __name__ == "__main__":
    main()
