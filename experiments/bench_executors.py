"""What an executor costs per candidate: free evaluations, 40 genes, many jobs in flight.

    python -m bodyplan.experiments.bench_executors [--executors inline local ray] [--jobs 2000] [--in-flight
    32]

prints one JSON object: for each executor the seconds until it is ready and the milliseconds per candidate
(median and range of three runs in one pool), beside what they were measured on. A reference point: one
trial of Ray Tune costs over 1,000 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ..search.executors import Executor, Job, make_executor
from ..search.executors.base import available_cpus
from ..space.genome import Genome

__all__ = ["Free", "main", "measure"]

_GENES = 40
_RUNS = 3


class Free:
    """An evaluator that takes no time, so that what is left is the executor."""

    def setup(self) -> None:
        """Nothing to prepare."""

    def run(self, job: Job) -> dict[str, Any]:
        return {"objectives": {"loss": float(job.id), "parameters": 1.0}, "intervals": {}, "extra": {}}


def measure(name: str, jobs: int, in_flight: int) -> dict[str, Any]:
    """Start-up in seconds and milliseconds per candidate of the executor called `name`."""
    with make_executor(name) as executor:
        started = time.perf_counter()
        executor.start(Free())
        start_seconds = time.perf_counter() - started
        _run(executor, in_flight, in_flight)                # the first calls find cold caches
        runs = [1e3 * _run(executor, jobs, in_flight) / jobs for _ in range(_RUNS)]
        return {"ms_per_candidate": round(statistics.median(runs), 3),
                "range_ms": [round(min(runs), 3), round(max(runs), 3)],
                "start_seconds": round(start_seconds, 2), "workers": executor.capacity}


def _run(executor: Executor, jobs: int, in_flight: int) -> float:
    """Seconds to evaluate `jobs` candidates with `in_flight` of them submitted at any time."""
    started = time.perf_counter()
    for number in range(jobs + in_flight):
        if number < jobs:
            executor.submit(_job(number))
        if number >= in_flight:
            outcome = executor.next()
            assert outcome.values is not None, outcome.failure
    return time.perf_counter() - started


def _job(number: int) -> Job:
    genes = {f"body[{gene // 5}].mixer.{gene % 5}": (number + gene) % 4 for gene in range(_GENES)}
    return Job(number, "score", Genome(genes), seed=number, fidelity={"steps": 100})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executors", nargs="+", default=["inline", "local", "ray"], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args(arguments)
    results = {name: measure(name, options.jobs, options.in_flight) for name in options.executors}
    print(json.dumps({
        "command": ("python -m bodyplan.experiments.bench_executors " + " ".join(arguments or sys.argv[1:])).strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": available_cpus(),
                    "load": round(os.getloadavg()[0], 1), "python": platform.python_version(),
                    "ray": version("ray")},
        "genes": _GENES, "jobs": options.jobs, "in_flight": options.in_flight, "executors": results,
    }, indent=2))


if __name__ == "__main__":
    main()
