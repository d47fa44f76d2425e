"""What a candidate costs before anything is measured: sample, canonicalise, deduplicate, constrain, count.

    python -m bodyplan.experiments.bench_candidate [--candidates 2000] [--repeats 5] [--profile]

One core, the space of the design page with three declared constraints. Each candidate is drawn, brought to its canonical
genome, checked against the constraints, hashed and looked up among those seen, and its parameters and multiply-adds are
counted. The aim is 0.5 ms or less per candidate that is kept. Prints one JSON object; `--profile` prints where the time
goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import random
import time
from collections.abc import Callable
from typing import Any

import bodyplan as bp
import numpy as np

from ..space.constraints import cost, count, value

__all__ = ["AIM_MS", "Draw", "design_space", "main", "measure", "stages"]

AIM_MS = 0.5
BATCH = 100
LENGTH = 256
WARM_UP = 300
MOST_PARAMETERS = 1.5e6


def design_space() -> bp.Space:
    """Hybrid decoders of two to eight layers, as the design page shows them, with a constraint of each kind: a count of
    layers, arithmetic over decisions, and a bound on a cost."""
    mixer = bp.choice(
        bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2), window=bp.choice(None, 64)),
        bp.GatedDeltaNet(heads=2), bp.Mamba2(state=bp.choice(16, 32)), bp.Hyena(), bp.ShortConv(kernel=4))
    channel = bp.choice(bp.SwiGLU(ratio=bp.choice(2, 3)), bp.MLP(activation="squared_relu"), bp.Identity())
    return bp.Space(
        embed=bp.TokenEmbedding(vocab=256), width=bp.choice(64, 96, 128),
        body=bp.repeat(bp.Block(mixer=mixer, channel=channel), times=bp.integer(2, 8)),
        recursion=bp.choice(bp.Once(), bp.Loop(times=2), bp.Loop(times=3, lora_rank=4)),
        head=bp.LanguageHead(tied=True),
        constraints=[count("Attention", window=None) <= 2, 2 * count("Identity") <= value("body.times"),
                     cost("parameters") <= MOST_PARAMETERS])


class Draw:
    """New candidates of a space, one by one, with their costs. `duplicates` counts the draws that were known."""

    def __init__(self, space: bp.Space, seed: int):
        self.space, self.rng = space, random.Random(seed)
        self.seen: set[str] = set()
        self.duplicates = 0

    def __call__(self) -> tuple[int, float]:
        """Parameters and multiply-adds of the next network that was not met before."""
        while True:
            architecture = self.space.architecture(self.space.sample_genome(self.rng))
            if architecture.hash not in self.seen:
                self.seen.add(architecture.hash)
                cost = architecture.cost(LENGTH)
                return cost.parameters, cost.macs
            self.duplicates += 1


def measure(candidates: int = 2000, repeats: int = 5) -> dict[str, Any]:
    """Milliseconds per kept candidate: the median over batches of 100, with its bootstrap 95 % interval."""
    space = design_space()
    per_batch: list[float] = []
    duplicates = 0
    _draw(space, WARM_UP, seed=repeats)
    gc.collect()
    for seed in range(repeats):
        times, known = _draw(space, candidates, seed)
        per_batch += times
        duplicates += known
    values = np.array(per_batch)
    draws = np.random.default_rng(0).choice(values, (1000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    median = float(np.median(values))
    return {"genes": len(space.genes), "constraints": len(space.constraints), "candidates": candidates * repeats,
            "duplicates": duplicates, "ms": median, "low": float(low), "high": float(high),
            "aim_ms": AIM_MS, "met": bool(high <= AIM_MS)}


def _draw(space: bp.Space, candidates: int, seed: int) -> tuple[list[float], int]:
    """Milliseconds per candidate of each batch, and how many draws were known already."""
    draw, times = Draw(space, seed), []
    for _ in range(max(1, candidates // BATCH)):
        began = time.perf_counter()
        for _ in range(BATCH):
            draw()
        times.append(1e3 * (time.perf_counter() - began) / BATCH)
    return times, draw.duplicates


def stages(candidates: int = 1000, seed: int = 0) -> dict[str, float]:
    """Milliseconds per candidate of each stage alone, on candidates drawn before."""
    space = design_space()
    _draw(space, WARM_UP, seed)
    rng = random.Random(seed)
    genomes = [space.sample_genome(rng) for _ in range(candidates)]
    architectures = [space.architecture(genome) for genome in genomes]
    draw = Draw(space, seed)
    found = {"sample, canonicalise, constrain": _per_call(lambda _: space.sample_genome(draw.rng), genomes),
             "resolve": _per_call(space.architecture, genomes),
             "hash": _per_call(lambda architecture: architecture.hash, architectures),
             "parameters and multiply-adds": _per_call(lambda architecture: architecture.cost(LENGTH), architectures)}
    return {name: round(value, 4) for name, value in found.items()}


def _per_call(call: Callable[[Any], Any], inputs: list[Any]) -> float:
    began = time.perf_counter()
    for item in inputs:
        call(item)
    return 1e3 * (time.perf_counter() - began) / len(inputs)


def profile(candidates: int) -> None:
    """Print the functions that take most of the time."""
    space = design_space()
    _draw(space, WARM_UP, 1)
    watch = cProfile.Profile()
    watch.enable()
    _draw(space, candidates, 0)
    watch.disable()
    pstats.Stats(watch).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Print the measurement as JSON, or a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print the functions that take the time, and no JSON")
    options = parser.parse_args()
    if options.profile:
        profile(options.candidates)
    else:
        print(json.dumps({**measure(options.candidates, options.repeats), "stages_ms": stages()}))


if __name__ == "__main__":
    main()
