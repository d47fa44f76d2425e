"""Overhead of the in-process loop: milliseconds per candidate with a free objective, journal on.

    python -m bodyplan.experiments.bench_loop [--trials 1000] [--strategy evolution] [--repeats 3]

Times run from the first to the last result in the journal, so start-up (imports, reference point) is left out and
everything per candidate is in: ask, canonical hash, evaluation of a constant, three journal commits, tell, progress.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["main", "milliseconds_per_candidate", "space_of_forty_genes"]


def space_of_forty_genes() -> Any:
    """A language-model space with 40 decisions: up to six layers of attention, MLP and gated MLP variants."""
    import bodyplan as bp

    block = bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(2, 4), window=bp.choice(None, 64)), bp.Identity()),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(2, 3)), bp.MLP(ratio=bp.choice(2, 4))))
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(64, 96, 128, 192),
                    body=bp.repeat(block, times=bp.integer(2, 6)),
                    recursion=bp.choice(bp.Once(), bp.Loop(times=bp.choice(2, 3))), head=bp.LanguageHead(tied=True))


def milliseconds_per_candidate(strategy: str, trials: int, seed: int = 0) -> float:
    """Run one sweep with two free objectives in a temporary directory and time it from its journal."""
    import bodyplan as bp

    free = [bp.Objective("zero", evaluate=lambda architecture: 0.0, reference=1.0),
            bp.Objective("depth", evaluate=lambda architecture: float(len(architecture.plan.layers)), reference=9.0)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        bp.Sweep(space_of_forty_genes(), objectives=free, strategy=strategy, trials=trials, seed=seed,
                 directory=directory, tracking=False, quiet=True).run()
        with bp.Journal.open(directory) as journal:
            times = [event.time for event in journal.events("result")]
    return float(1000 * (times[-1] - times[0]) / (len(times) - 1))


def main() -> None:
    """Print one JSON line per strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--strategy", nargs="+", default=["evolution", "random", "optuna:nsga2"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    genes = len(space_of_forty_genes().genes)
    for strategy in options.strategy:
        found = sorted(milliseconds_per_candidate(strategy, options.trials, seed) for seed in range(options.repeats))
        print(json.dumps({"benchmark": "loop overhead", "strategy": strategy, "genes": genes, "trials": options.trials,
                          "ms_per_candidate": round(found[len(found) // 2], 3), "all_ms": [round(x, 3) for x in found],
                          "machine": platform.platform(), "date": time.strftime("%Y-%m-%d")}))


if __name__ == "__main__":
    main()
