"""docs/latency.md, from the results of the study of latency tables alone."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["page", "write_page"]

Results = dict[str, dict[str, Any]]
SIZES = (20, 50, 100, 200, 500)
PHONES = ("essential_ph_1", "samsung_a50", "samsung_s7")
METHODS = {("gaussian", "unknown"): "Gaussian process", ("gaussian", "training"): "the same, order of training rows known",
           ("gaussian", "both"): "the same, order of all rows known", ("auto", "unknown"): "mixture by cross-validation",
           ("boosting", "unknown"): "gradient boosting", ("ridge", "unknown"): "ridge regression",
           ("lookup", "unknown"): "lookup table"}


def write_page(results: Path, target: Path) -> Path:
    """Write the page of a study, also of one that is not finished: every number says of how many seeds it is."""
    if not results.is_file():
        raise ValueError(f"a report needs results: {results} is missing; run the study without --report first")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(results), encoding="utf-8")
    return target


def page(results: Path) -> str:
    """The whole page in Markdown."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    found: Results = {line["key"]: line for line in lines}
    machine = found.get("machine", {})
    date = datetime.datetime.fromtimestamp(results.stat().st_mtime, datetime.UTC).date()
    parts = [_head(machine, str(date)), _transformers(found), _drift(found), _scratch(found), _few(found), _held(found)]
    return "\n".join(line for part in parts for line in part) + "\n"


HEAD = """
Written by `python -m bodyplan.experiments.latency_tables --out runs/latency_tables` and `--report docs/latency.md` from
results of {date}: {where}, with other work on the same machine. The latencies are tables that others measured (HAT, MIT
licence; HELP, MIT licence); nothing was measured here. Every number is a mean over seeds from 0 on, which draw the training
rows; brackets hold the lowest and the highest, n how many there were. All tables run with the
same defaults. These were chosen with the tables in view, in part on seeds that are shown here, so that a table never looked
at may do a little worse."""
HELD = """
How many per cent of all other rows 90 % intervals held, in the mean over exchangeable splits of one table into training and
test rows, of other seeds than above, the order of measuring not known; brackets hold the standard error of that mean. In
`products`, latencies are made: a sum of products of three sizes with 10 % noise."""
TRANSFORMERS = """
Encoder plus decoder latency from the ten features of the table. Mean absolute percentage error on all rows that were not
trained on, and below it how many per cent of them the 90 % intervals held. What is known of a test row are its features,
and in the row that says so its place in the order of measuring. Where only the training rows' order is known, test rows are
predicted for a typical session, and still compared with what was measured in theirs."""
DRIFT = """
Sessions by `find_drift` in what a predictor that knows nothing of the order leaves over (trained on 300 rows of one half
of the table, asked about the other half, both ways)."""
SCRATCH = """
Spearman correlation on all other rows of the table, untrimmed, from the operators of the 22 blocks. `raspi4` is an exact sum
over blocks, which is recognised from 200 samples."""
FEW = """
Each device in turn is the new one, all others are known. Known of every row are its operators and its latency on the other
devices; of ten rows, the latency on the new one. Trimmed at scoring only, to rows between the 10 % and the 90 % quantile
of the new device; the ten are left out. Chosen: by `Transfer.choose`, which sees nothing of the new device. The phones'
timers are coarse: their ceiling is ridge regression over blocks and all other devices with 2,500 samples, scored the
same way. Intervals are the geometric mean of those that would have held for the known devices and of conformal ones."""


def _paragraph(text: str, **values: str) -> str:
    return " ".join(text.format(**values).split())


def _head(machine: dict[str, Any], date: str) -> list[str]:
    where = f"{machine.get('processor', 'a CPU')}, one thread, torch {machine.get('torch', '?')}"
    return ["# Predicted latency", "", _paragraph(HEAD, date=date, where=where), ""]


def _seeds(found: Results, key: str, what: str) -> list[float]:
    return [line[what] for name, line in found.items() if name.rpartition("/")[0] == key and what in line]


def _mean(values: list[float], percent: bool = True) -> str:
    if not values:
        return "-"
    scale, digits = (100, 2) if percent else (1, 3)
    low, middle, high = (scale * number for number in (min(values), float(np.mean(values)), max(values)))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] n={len(values)}"


def _transformers(found: Results) -> list[str]:
    lines = ["## Translation transformers (HAT)", "",
             _paragraph(TRANSFORMERS), ""]
    for device in ("Titan Xp", "Raspberry Pi 4"):
        lines += [f"### {device}", "", "| samples | " + " | ".join(map(str, SIZES)) + " |", "|---|" + "---|" * len(SIZES)]
        for (method, order), name in METHODS.items():
            for what, label in (("mape", name), ("coverage", "held by intervals")):
                cells = [_mean(_seeds(found, f"hat/{device}/{size}/{method}/{order}", what)) for size in SIZES]
                if set(cells) != {"-"}:
                    lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _drift(found: Results) -> list[str]:
    lines = ["## Drift found in these tables", "",
             _paragraph(DRIFT), ""]
    for device in ("Titan Xp", "Raspberry Pi 4"):
        drift = found.get(f"drift/{device}")
        if drift is not None:
            lines += [f"{device}, up to {100 * drift['largest']:.0f} % apart:", "",
                      "| rows | shift | spread |", "|---|---|---|"]
            lines += [f"| {s['first']:g} to {s['last']:g} | {100 * s['shift']:+.1f} % | {100 * s['spread']:.1f} % |"
                      for s in drift["sessions"]]
            lines.append("")
    return lines


def _scratch(found: Results) -> list[str]:
    lines = ["## FBNet networks from scratch", "",
             _paragraph(SCRATCH), "",
             "| device | samples | Gaussian process | held by intervals, % | ridge regression per block |",
             "|---|---|---|---|---|"]
    for device, size in (("gold_6240", 50), ("gold_6240", 100), ("gold_6240", 200), ("raspi4", 200)):
        key = f"fbnet/{device}/{size}/{{}}/unknown"
        ours, plain = (_mean(_seeds(found, key.format(method), "spearman"), False) for method in ("gaussian", "ridge"))
        lines.append(f"| {device} | {size} | {ours} | {_mean(_seeds(found, key.format('gaussian'), 'coverage'))} | {plain} |")
    return [*lines, ""]


def _few(found: Results) -> list[str]:
    devices = list(dict.fromkeys(name.split("/")[1] for name in found if name.startswith("few/")))
    lines = ["## A new device from ten samples (FBNet)", "",
             _paragraph(FEW), "",
             "| new device | Spearman, ten chosen | ten at random | held by intervals, chosen, % | ceiling |",
             "|---|---|---|---|---|"]
    for device in devices:
        chosen, drawn = (_mean(_seeds(found, f"few/{device}/{choice}", "spearman"), False) for choice in ("chosen", "random"))
        held = _mean(_seeds(found, f"few/{device}/chosen", "coverage"))
        ceiling = found.get(f"ceiling/{device}")
        most = f"{ceiling['spearman']:.3f} ({ceiling['distinct']} distinct values)" if ceiling else ""
        lines.append(f"| {device} | {chosen} | {drawn} | {held} | {most} |")
    means = {choice: [float(np.mean(values)) for device in devices if device not in PHONES
                      if (values := _seeds(found, f"few/{device}/{choice}", "spearman"))] for choice in ("chosen", "random")}
    if all(means.values()):
        lines += ["", f"Mean over the {len(means['chosen'])} devices that are not phones: "
                      f"{np.mean(means['chosen']):.3f} chosen, {np.mean(means['random']):.3f} at random."]
    return lines


def _held(found: Results) -> list[str]:
    cells: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    for name, line in found.items():
        if name.startswith("held/"):
            _, table, size, method, _ = name.split("/")
            cells.setdefault((table, method), {}).setdefault(int(size), []).append(line)
    if not cells:
        return []
    sizes = sorted({size for cell in cells.values() for size in cell})
    columns = " | ".join(f"{size} samples" for size in sizes)
    lines = ["", "## Intervals over many splits", "", _paragraph(HELD), "",
             f"| table | method | {columns} |", "|---|---|" + "---|" * len(sizes)]
    for (table, method), cell in cells.items():
        name = METHODS[method, "unknown"]
        lines.append(f"| {table} | {name} | " + " | ".join(_over_splits(cell.get(size, [])) for size in sizes) + " |")
    return lines


def _over_splits(lines: list[dict[str, Any]]) -> str:
    """The mean of equally many splits a line."""
    if not lines:
        return "-"
    means = 100 * np.array([line["coverage"] for line in lines])
    error = f" [{means.std(ddof=1) / len(means) ** 0.5:.2f}]" if len(means) > 1 else ""
    return f"{means.mean():.2f}{error} n={sum(line['splits'] for line in lines)}"
