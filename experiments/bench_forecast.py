"""What `--dry-run` says of small sweeps, and what they take.

    python -m bodyplan.experiments.bench_forecast [--cases alone-1 alone-2 ...]

Text, spaces of small decoders. Dry run and run are processes of their own, as they are from the command line, one after the
other. Memory that a run took: the most of the sum of proportional set sizes (Linux) of the process and everything below it,
looked at twice a second; what several processes map counts once. Prints one JSON object: seconds and gigabytes
forecast and taken, and taken over forecast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import bodyplan as bp
import psutil

from ..evaluators.devices import device_fingerprint

__all__ = ["CASES", "main", "measure", "sweep_of"]

LOOKS_SECONDS = 0.5
BRIEF = {"trials": 3, "steps": 3}
CASES: dict[str, dict[str, Any]] = {
    "brief-1": {"workers": 1, **BRIEF}, "brief-2": {"workers": 2, **BRIEF},
    "costs": {"objectives": ["parameters", "macs"], "trials": 300},
    "tracked": {"objectives": ["parameters", "macs"], "trials": 20, "tracking": True},
    "alone-1": {"workers": 1}, "alone-2": {"workers": 2},
    "latency-1": {"workers": 1, "timed": True}, "latency-2": {"workers": 2, "timed": True},
    "supernet-1": {"workers": 1, "supernet": True}, "supernet-2": {"workers": 2, "supernet": True},
}


def sweep_of(case: str, directory: str) -> bp.Sweep:
    """A sweep of one of the cases; it has never run."""
    given = {"objectives": ["loss", "parameters"], "trials": 6, "steps": 10, "tracking": False, **CASES[case]}
    if given.pop("timed", False):
        given["objectives"] = [*given["objectives"], bp.latency("cpu", budget_ms=1000)]
    space = bp.Space(
        embed=bp.TokenEmbedding(vocab=256), width=bp.choice(64, 96, 128),
        body=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(2, 4)), bp.GatedDeltaNet(heads=2),
                                                bp.ShortConv(kernel=4)),
                                channel=bp.choice(bp.SwiGLU(ratio=bp.choice(2, 3)), bp.Identity())), times=bp.integer(2, 6)),
        head=bp.LanguageHead(tied=True))
    task = bp.tasks.text(length=64, batch=8) if "loss" in given["objectives"] else None
    return bp.Sweep(space, task=task, directory=directory, quiet=True, supernet_steps=20, retrain=1,
                    fidelity_sample=3, **given)


def measure(cases: Sequence[str]) -> dict[str, Any]:
    """Forecasts and runs, each in a process of its own."""
    found: dict[str, Any] = {"machine": device_fingerprint("cpu"), "cases": {}}
    for case in cases:
        said, took = (_asked(part, case) for part in ("--forecast", "--run"))
        found["cases"][case] = {**said, **took, "seconds_ratio": took["seconds_taken"] / said["seconds"],
                                "memory_ratio": took["memory_taken_gb"] / said["memory_gb"]}
    return found


def _asked(part: str, case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bodyplan.experiments.bench_forecast", part, case]
    done: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return done


def _forecast(case: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        said = sweep_of(case, f"{folder}/run").dry_run()
    return {name: getattr(said, name) for name in ("seconds", "seconds_per_trial", "seconds_alone", "memory_gb", "worker_gb",
                                                   "driver_gb", "workers", "failures")}


def _run(case: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        sweep = sweep_of(case, f"{folder}/run")
        began = time.perf_counter()
        with _watching() as looks:
            front = sweep.run()
        seconds = time.perf_counter() - began
    return {"seconds_taken": seconds, "memory_taken_gb": max(looks) / 1e9, "front": len(front)}


@contextlib.contextmanager
def _watching() -> Any:
    """Bytes of this process and its children, look by look."""
    looks, over = [_bytes()], threading.Event()

    def look() -> None:
        while not over.wait(LOOKS_SECONDS):
            looks.append(_bytes())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield looks
    finally:
        over.set()
        watcher.join()


def _bytes() -> float:
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.bench_forecast",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--forecast", choices=CASES, help="only the dry run of a case, in this process")
    parser.add_argument("--run", choices=CASES, help="only the run of a case, in this process")
    asked = parser.parse_args(arguments)
    print(json.dumps(_forecast(asked.forecast) if asked.forecast else _run(asked.run) if asked.run else measure(asked.cases)))


if __name__ == "__main__":
    main()
