"""Every benchmark of the package in one page: `make bench` writes docs/benchmarks.md.

Each number is a ratio or an overhead measured in one run on the machine named in the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the benchmarks one after the other, each in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--seconds", type=float, default=30.0, help="per row of the slicing tax, at most")
    options = parser.parse_args()
    out = options.out
    parts = [_head(), _candidate(), _slicing(options.seconds), _loop(), _ray(), _tracking()]
    out.write_text("\n".join(parts))
    print(f"wrote {out}")


def _run(module: str, *arguments: str, **variables: str) -> tuple[str, list[Any]]:
    """The command as a person types it, and the JSON it prints: one document, or one a line."""
    command = [sys.executable, "-m", f"bodyplan.experiments.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **variables})
    try:
        found = [json.loads(done.stdout)]
    except json.JSONDecodeError:
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return f"python -m bodyplan.experiments.{module} {' '.join(arguments)}".strip(), found


def _head() -> str:
    import torch

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else ""
    return (f"# Benchmarks\n\nWritten by `make bench` on {time.strftime('%Y-%m-%d')}: {cpu}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, torch {torch.__version__}, one torch thread, seed 0. Ratios are medians of pairs "
            "measured alternately in one run; brackets are bootstrap 95 % intervals.\n")


def _candidate() -> str:
    command, (found,) = _run("bench_candidate")
    lines = ["## A candidate before anything is measured", "",
             f"Sample, canonical genome, {found['constraints']} constraints, canonical hash, look-up among those seen, "
             f"parameters and multiply-adds: {found['candidates']:,} networks of the design page's space "
             f"({found['genes']} genes), one core. Aim: {found['aim_ms']} ms or less.", "", f"`{command}`", "",
             f"**{found['ms']:.3f} ms** [{found['low']:.3f}, {found['high']:.3f}] per candidate. Stages alone, in ms: "
             + ", ".join(f"{name} {ms:.3f}" for name, ms in found["stages_ms"].items()) + "."]
    return "\n".join([*lines, ""])


def _slicing(seconds: float) -> str:
    command, (found,) = _run("bench_slicing", "--seconds", f"{seconds:g}")
    lines = ["## Slicing tax", "", "A training step (forward and backward) through a supernet's views, against the same "
             "step of the extracted module. Two layers of each kind; the process keeps what it frees, as in every training "
             f"of the package. Aim: {found['aim']} or less at 2,048 tokens a step; the worst there is {found['worst']:.3f}.",
             "", f"`{command}`", "",
             "| layers | width of stored | tokens a step | ratio | subnet ms | extracted ms | pairs |",
             "|---|---|---|---|---|---|---|"]
    lines += [_slicing_row(row) for row in sorted(found["rows"], key=lambda row: -row["tokens"])]
    return "\n".join([*lines, ""])


def _slicing_row(row: dict[str, Any]) -> str:
    return (f"| {row['kind']} | {row['width']} of {row['of']} | {row['tokens']} | {row['ratio']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}] | {row['subnet_ms']:.1f} | {row['extracted_ms']:.1f} | {row['pairs']} |")


def _loop() -> str:
    command, rows = _run("bench_loop")
    lines = ["## Overhead of the in-process loop", "", "Milliseconds per candidate with free objectives, journal on.", "",
             f"`{command}`", "", "| strategy | genes | trials | ms per candidate |", "|---|---|---|---|"]
    lines += [f"| {r['strategy']} | {r['genes']} | {r['trials']} | {r['ms_per_candidate']:.2f} |" for r in rows]
    return "\n".join([*lines, ""])


def _ray() -> str:
    command, rows = _run("bench_executors")
    lines = ["## Overhead of the Ray executor", "", "A free evaluator, many candidates in flight.", "", f"`{command}`", "",
             "```", *(json.dumps(row) for row in rows), "```"]
    return "\n".join([*lines, ""])


def _tracking() -> str:
    command, rows = _run("bench_tracking")
    lines = ["## MLflow", "", "The same sweep with and without MLflow, candidates of one second, to the full drain of its "
             "queue.", "", f"`{command}`", "", "```", *(json.dumps(row) for row in rows), "```"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
