"""docs/pruning.md, from the JSON of the pruning study alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["page", "write_page"]

Floats = NDArray[np.float64]
DRAWS = 4000


def write_page(result: Path, target: Path) -> Path:
    """Write the page of a finished study, and its JSON beside it. Raises ValueError when there is no study."""
    if not result.is_file():
        raise ValueError(f"a report needs a finished study: {result} is missing; run it without --report first")
    study = json.loads(result.read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(study), encoding="utf-8")
    target.with_suffix(".json").write_text(json.dumps(study, indent=1), encoding="utf-8")
    return target


def page(study: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    rows = {row["network"]: row for row in study["rows"]}
    parts = [_head(study), _original(study), _how(study), _table(study), _differences(rows), _search(study), _networks(study)]
    return "\n".join(line for part in parts for line in [*part, ""])


def _head(study: dict[str, Any]) -> list[str]:
    machine = study["machine"]
    return ["# Pruning a trained transformer by search", "",
            f"Written by `{study['command']}` and `--report` on {study['date']}: {machine['processor']}, one torch thread, "
            f"torch {machine['torch']}, seed {study['settings']['seed']}. Data: {study['task']}. Training reads the training "
            "split, candidates are scored on the validation split, all numbers of networks are of the test split."]


def _original(study: dict[str, Any]) -> list[str]:
    s, first = study["settings"], study["rows"][0]
    return [f"The original is a byte-level transformer of {s['layers']} layers and width {s['width']} "
            f"({first['parameters']:,} parameters, {first['macs'] / 1e6:.1f} million multiply-adds for {s['length']} bytes), "
            f"trained for {s['steps']:,} steps. Its heads, hidden units and residual stream are put into the order of their "
            f"importance by {s['criteria']}, which leaves what it computes as it was: "
            f"{_value(study['ordered_full_size'])} bits per byte after, {_value(first['before'])} before. As a supernet it "
            f"holds {int(study['size']):.2g} genomes."]


def _how(study: dict[str, Any]) -> list[str]:
    s = study["settings"]
    return [f"The searched network is the best of {s['evaluations']} on the scoring split, as they stand in the weights, "
            f"with at most {s['share']:.0%} of the multiply-adds: which layers and sublayers stay, how many heads and hidden "
            "units each has. Magnitude pruning takes the same fraction of every layer by weight norm. Pruned networks then "
            f"learn the original's predictions for {s['short_steps']} steps; networks from scratch learn the text."]


def _table(study: dict[str, Any]) -> list[str]:
    whole = study["rows"][0]["macs"]
    lines = ["| network | parameters | multiply-adds | bits per byte as pruned | after training |", "|---|---|---|---|---|"]
    for row in study["rows"]:
        lines.append(f"| {row['network']} | {row['parameters']:,} | {row['macs'] / whole:.1%} | {_value(row['before'])} | "
                     f"{_value(row['after'])} |")
    return [*lines, "", "Brackets are bootstrap 95 % intervals over test batches; they do not cover other seeds."]


def _differences(rows: dict[str, Any]) -> list[str]:
    """The searched network against each of the others, on the same batches."""
    ours = rows["searched"]["after"]
    lines = ["The searched network after distillation, against the others on the same test batches (negative: it is better):",
             ""]
    for name, row in rows.items():
        theirs = row["after"] or row["before"]
        if name != "searched":
            low, middle, high = _interval(np.array(ours) - np.array(theirs))
            word = "better" if high < 0 else "worse" if low > 0 else "no clear difference"
            lines.append(f"- {name}: {middle:+.3f} [{low:+.3f}, {high:+.3f}] bits per byte: {word}")
    return lines


def _search(study: dict[str, Any]) -> list[str]:
    trace, marks = study["search"], [1, 10, 50, 100, 200, 400]
    points = [f"{trace[n - 1]:.3f} after {n}" for n in marks if n < len(trace)] + [f"{trace[-1]:.3f} after {len(trace)}"]
    took = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f}" for name, seconds in study["seconds"].items())
    return [f"The search: best bits per byte on the scoring split {', '.join(points)} candidates.", "",
            f"Seconds of one core: {took}; {sum(study['seconds'].values()) / 60:.1f} minutes in all."]


def _networks(study: dict[str, Any]) -> list[str]:
    return ["The network that the search found:", "", "```", study["searched"], "```", "", "The uniform one:", "", "```",
            study["uniform"], "```"]


def _value(values: list[float] | None) -> str:
    if not values:
        return "-"
    low, middle, high = _interval(np.array(values))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _interval(values: Floats) -> tuple[float, float, float]:
    """Mean, and its bootstrap 95 % interval: (low, mean, high)."""
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(values.mean()), float(high)
