"""Tables of latencies that others measured, and one that is made, as samples and values.

HAT's latencies of translation transformers on a Titan Xp and a Raspberry Pi 4 (Hardware-Aware Transformers, Wang et al.,
2020), and HELP's of FBNet networks on eleven device settings (Lee et al., 2021).
"""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np

from ..evaluators.predictors import Table
from ..evaluators.predictors.table import Floats

__all__ = ["FBNET", "HAT", "fbnet", "hat", "products", "tables_folder"]

HAT = {"Titan Xp": "hat_wmt14ende_gpu_titanxp_all.csv.gz", "Raspberry Pi 4": "hat_wmt14ende_cpu_raspberrypi_all.csv.gz"}
FBNET = "fbnet_latency.csv.gz"


def tables_folder(given: str | None = None) -> Path:
    """Where the tables are. Raises ValueError when they are not there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "bench"
    folder = Path(given or os.environ.get("BODYPLAN_TABLES") or beside)
    missing = [name for name in (*HAT.values(), FBNET) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"the study needs {', '.join(missing)} in {folder}; say where with --tables or BODYPLAN_TABLES")
    return folder


def _columns(path: Path) -> dict[str, list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def hat(folder: Path, device: str) -> tuple[Table, Floats]:
    """Ten features of each transformer with the order of its row, and encoder plus decoder latency in milliseconds."""
    columns = {name: np.array(values, dtype=np.float64) for name, values in _columns(folder / HAT[device]).items()}
    names = tuple(name for name in columns if not name.startswith("latency"))
    latency = columns["latency_mean_encoder"] + columns["latency_mean_decoder"]
    return Table(np.stack([columns[name] for name in names], axis=1), names, order=np.arange(float(len(latency)))), latency


def fbnet(folder: Path) -> tuple[Table, dict[str, Floats]]:
    """The operator of each of 22 blocks, and milliseconds by device."""
    columns = _columns(folder / FBNET)
    operators = np.array([values for name, values in columns.items() if not name.startswith("lat_")], dtype=np.str_).T
    latencies = {name[4:]: np.array(values, dtype=np.float64) for name, values in columns.items() if name.startswith("lat_")}
    return Table(np.zeros((len(operators), 0)), (), operators), latencies


def products(rows: int = 2000, noise: float = 0.1) -> tuple[Table, Floats]:
    """Made: a depth, a width and a kernel, and a latency that is a sum of their products, with noise of a tenth."""
    rng = np.random.default_rng(0)
    depth, width, kernel = rng.integers(1, 9, rows), 64.0 * rng.integers(1, 9, rows), rng.choice([3.0, 5.0, 7.0], rows)
    latency = (2 + depth * (width / 100 + 0.3 * kernel)) * np.exp(noise * rng.normal(size=rows))
    return Table(np.stack([depth, width, kernel], axis=1), ("depth", "width", "kernel")), latency
