"""Predictors against tables of latencies that others measured.

    python -m bodyplan.experiments.latency_tables --out runs/latency_tables [--tables DIR] [--seeds 10] [--only NAME]
    python -m bodyplan.experiments.latency_tables --out runs/latency_tables --report docs/latency.md

The tables: HAT's latencies of translation transformers on a Titan Xp and a Raspberry Pi 4 (Hardware-Aware Transformers,
Wang et al., 2020), and HELP's of FBNet networks on eleven device settings (Lee et al., 2021). They are looked for in
`--tables`, in $BODYPLAN_TABLES, or in ../shared/bench beside the checkout. Every result is a line of `results.jsonl`;
the same command continues where it was stopped. The second command writes the page from those lines alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluators.devices import device_fingerprint
from ..evaluators.predictors import Predictor, Table, Transfer, find_drift
from ..evaluators.predictors.table import Floats
from .latency_page import write_page
from .measured_tables import HAT, fbnet, hat, products, tables_folder

__all__ = ["fbnet", "hat", "main", "tables_folder"]

SIZES = (20, 50, 100, 200, 500)
PHONES = ("essential_ph_1", "samsung_a50", "samsung_s7")
SPLITS = 20             # in one line of results; a cell of the page has ten
Work = tuple[str, Callable[[], dict[str, Any]]]


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b)[0])


def _scores(prediction: Any, truth: Floats) -> dict[str, float]:
    inside = (prediction.low <= truth) & (truth <= prediction.high)
    return {"mape": float(np.abs(prediction.value / truth - 1).mean()), "coverage": float(inside.mean()),
            "width": float(np.median((prediction.high - prediction.low) / prediction.value)),
            "spearman": _spearman(prediction.value, truth)}


def _split(rows: int, size: int, seed: int) -> tuple[Any, Any]:
    shuffled = np.random.default_rng(seed).permutation(rows)
    return shuffled[:size], shuffled[size:]


def _curve(table: Table, truth: Floats, size: int, seed: int, method: str, order: str) -> dict[str, Any]:
    """One training. order: "unknown"; "training", known of the training rows; "both", of the test rows as well."""
    train, test = _split(len(table), size, seed)
    if method == "lookup":
        words = np.array([[f"{number:g}" for number in row] for row in table.values], dtype=np.str_)
        table = replace(table, values=np.zeros((len(table), 0)), names=(), operators=words)
    model = {"ridge": "additive", "lookup": "additive"}.get(method, method)
    known = table if order != "unknown" else table.without_order()
    fitted = Predictor(model, seed=seed).fit(known.rows(train), truth[train])                         # type: ignore[arg-type]
    asked = known if order == "both" else known.without_order()
    found = _scores(fitted.predict(asked.rows(test)), truth[test])
    return {**found, "sessions": len(fitted.report.drift.sessions)} if fitted.report.drift is not None else found


def _drift(table: Table, truth: Floats) -> dict[str, Any]:
    """Sessions in what two predictors leave over, each fitted on 300 rows of one half and asked about the other half."""
    shuffled = np.random.default_rng(0).permutation(len(table))
    rest = np.zeros(len(table))
    for train, test in ((shuffled[::2], shuffled[1::2]), (shuffled[1::2], shuffled[::2])):
        fitted = Predictor("gaussian").fit(table.without_order().rows(train[:300]), truth[train[:300]])
        rest[test] = np.log(truth[test] / fitted.predict(table.without_order().rows(test)).value)
    found = find_drift(table.order, rest)
    return {"largest": found.largest, "sessions": [vars(session) for session in found.sessions]}


def _few(transfer: Transfer, truth: Floats, choice: str, seed: int) -> dict[str, Any]:
    rows = transfer.choose(10, seed=seed) if choice == "chosen" else np.random.default_rng(seed).permutation(len(truth))[:10]
    found = transfer.fit(rows, truth[rows]).predict()
    low, high = np.quantile(truth, [0.1, 0.9])
    kept = (truth >= low) & (truth <= high)
    kept[rows] = False
    rest = np.setdiff1d(np.arange(len(truth)), rows)
    return {"spearman": _spearman(found.value[kept], truth[kept]),
            "coverage": float(((found.low <= truth) & (truth <= found.high))[rest].mean())}


def _ceiling(table: Table, latencies: dict[str, Floats], device: str) -> dict[str, Any]:
    """2,500 samples of the device, ridge over positions and all other devices; scored as the few are."""
    others = {name: np.log(values) for name, values in latencies.items() if name != device}
    whole = replace(table, values=np.stack(list(others.values()), axis=1), names=tuple(others))
    truth = latencies[device]
    train, test = _split(len(truth), 2500, 0)
    found = Predictor("additive").fit(whole.rows(train), truth[train]).predict(whole.rows(test)).value
    low, high = np.quantile(truth, [0.1, 0.9])
    kept = (truth[test] >= low) & (truth[test] <= high)
    return {"spearman": _spearman(found[kept], truth[test][kept]), "distinct": len(np.unique(truth))}


def _held(table: Table, truth: Floats, size: int, method: str, first: int) -> dict[str, Any]:
    """What intervals held in the mean over `SPLITS` exchangeable splits."""
    found = [_curve(table, truth, size, seed, method, "unknown")["coverage"] for seed in range(first, first + SPLITS)]
    return {"coverage": float(np.mean(found)), "splits": SPLITS}


def works(folder: Path, seeds: int) -> Iterator[Work]:
    """Everything the study does, under a name that is its key in the results; what shows most comes first."""
    yield "machine", lambda: {"processor": str(device_fingerprint("cpu")["name"]), "torch": torch.__version__}
    table, latencies = fbnet(folder)
    made: dict[str, Transfer] = {}

    def transfer(device: str) -> Transfer:
        if device not in made:
            made.clear()
            made[device] = Transfer(table, {name: values for name, values in latencies.items() if name != device})
        return made[device]

    def few_from(device: str, truth: Floats, choice: str, seed: int) -> dict[str, Any]:
        return _few(transfer(device), truth, choice, seed)

    for device, truth in latencies.items():
        for seed in range(seeds):
            for choice in ("chosen", "random"):
                yield f"few/{device}/{choice}/{seed}", partial(few_from, device, truth, choice, seed)
    for device in PHONES:
        yield f"ceiling/{device}", partial(_ceiling, table, latencies, device)
    sets = {device: hat(folder, device) for device in HAT}
    for device, (rows, truth) in sets.items():
        yield f"drift/{device}", partial(_drift, rows, truth)
    for size in (100, 20, 50, 200, 500):
        for seed in range(seeds):
            for device, (rows, truth) in sets.items():
                for method, order in (("gaussian", "unknown"), ("gaussian", "training"), ("gaussian", "both"),
                                      ("ridge", "unknown"), ("lookup", "unknown"), ("boosting", "unknown"),
                                      *([("auto", "unknown")] if size == 100 else [])):
                    yield (f"hat/{device}/{size}/{method}/{order}/{seed}",
                           partial(_curve, rows, truth, size, seed, method, order))
    for seed in range(seeds):
        for device, sizes in (("gold_6240", (200, 100, 50)), ("raspi4", (200,))):
            for size in sizes:
                for method in ("gaussian", "ridge"):
                    yield (f"fbnet/{device}/{size}/{method}/unknown/{seed}",
                           partial(_curve, table, latencies[device], size, seed, method, "unknown"))
    four = {**sets, "products": products(), "gold_6240": (table, latencies["gold_6240"])}
    for method, among in (("ridge", four), ("gaussian", four), ("boosting", {**sets, "products": products()})):
        for part in range(10):
            first = 1000 + SPLITS * part
            for size in (30, 50, 100, 200):
                for name, (rows, truth) in among.items():
                    yield f"held/{name}/{size}/{method}/{part}", partial(_held, rows, truth, size, method, first)


def study(out: Path, folder: Path, seeds: int = 10, only: str = "") -> Path:
    """Do what `works` lists and is not in `out/results.jsonl` yet, one line each."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / "results.jsonl"
    done = {json.loads(line)["key"] for line in target.read_text().splitlines()} if target.is_file() else set()
    for key, work in works(folder, seeds):
        if key not in done and (only in key or key == "machine"):
            started = time.process_time()
            result = {"key": key, **work(), "seconds": round(time.process_time() - started, 3)}
            with target.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    return target


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.latency_tables")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tables", help="folder of the tables; by default $BODYPLAN_TABLES or ../shared/bench")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="do only what has this in its key, e.g. few/raspi4")
    parser.add_argument("--report", type=Path, help="write this page from the results, and measure nothing")
    given = parser.parse_args(argv)
    try:
        if given.report is not None:
            print(write_page(given.out / "results.jsonl", given.report))
        else:
            torch.set_num_threads(1)
            print(study(given.out, tables_folder(given.tables), given.seeds, given.only))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
