"""What MLflow costs a sweep: the same sweep with and without it, to the full drain of its queue.

Candidates take one second of sleep each. `python -m bodyplan.experiments.bench_tracking [--candidates 40]` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import bodyplan as bp

__all__ = ["seconds_of_sweep"]


def _one_second(architecture: bp.Architecture) -> float:
    time.sleep(1.0)
    return float(len(architecture.plan.layers))


def seconds_of_sweep(tracking: bool, candidates: int, seed: int = 0) -> float:
    """Wall time of `Sweep.run()`, which returns when the tracker has written everything."""
    from .bench_loop import space_of_forty_genes

    slow = bp.Objective("depth", evaluate=_one_second, reference=9.0)
    free = bp.Objective("size", evaluate=lambda architecture: float(architecture.plan.width), reference=256.0)
    with tempfile.TemporaryDirectory() as folder:
        made = bp.Sweep(space_of_forty_genes(), objectives=[slow, free], trials=candidates, seed=seed, tracking=tracking,
                        executor="inline", directory=Path(folder) / "run", quiet=True)
        began = time.perf_counter()
        made.run()
        return time.perf_counter() - began


def main() -> None:
    """Print the ratio of the two wall times; a first sweep pays for MLflow's import and migrations, so say both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=60)
    count = parser.parse_args().candidates
    without = seconds_of_sweep(False, count)
    first, second = (seconds_of_sweep(True, count, seed) for seed in (1, 2))
    print(json.dumps({"benchmark": "MLflow", "candidates": count, "seconds_without": round(without, 2),
                      "seconds_with_first": round(first, 2), "seconds_with": round(second, 2),
                      "ratio_first": round(first / without, 3), "ratio": round(second / without, 3)}))


if __name__ == "__main__":
    main()
