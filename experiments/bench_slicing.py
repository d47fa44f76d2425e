"""The slicing tax: a training step through a supernet's views against the same step of the extracted module.

    python -m bodyplan.experiments.bench_slicing [--kinds attention MoE ...] [--widths 128 512] [--seconds 30]

Forward and backward, at full and at half width, with 2,048 tokens a step, and with 128 tokens beside it. Each ratio is
measured in one run with interleaved repeats and equal threads, so that drift of the machine hits both sides alike. Freed
memory stays with the process, as in every training of this package. The aim is 1.05 or less at 2,048 tokens. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import bodyplan as bp
import numpy as np
import torch

from ..evaluators.devices import keep_freed_memory
from ..space.operators.moe import MoE

__all__ = ["AIM", "KINDS", "main", "measure", "ratio", "slicing_space"]

AIM = 1.05
REPEATS = 30
FEWEST = 8
SECONDS = 30.0
LENGTH = 128
BATCHES = {"large": 16, "small": 1}          # sequences of 128 tokens a step


def block(mixer: Any, channel: Any = None) -> bp.Block:
    return bp.Block(mixer=mixer, channel=channel or bp.SwiGLU(ratio=2))


def attention() -> Any:
    return bp.Attention(heads=2, kv_heads=1)


KINDS: dict[str, Callable[[], bp.Block]] = {
    "attention": lambda: block(attention()),
    "gated delta": lambda: block(bp.GatedDeltaNet(heads=2)),
    "Mamba-2": lambda: block(bp.Mamba2(state=32, head_dim=32)),
    "short convolution": lambda: block(bp.ShortConv(kernel=4)),
    "Hyena": lambda: block(bp.Hyena()),
    "MoE": lambda: block(attention(), MoE(experts=4, top_k=2, ratio=2)),
    "looped": lambda: block(attention())}


def slicing_space(kind: str, width: int) -> bp.Space:
    """Two layers of one kind, at `width` and at half of it; "looped" runs them twice."""
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(width // 2, width),
                    body=bp.repeat(KINDS[kind](), times=2), recursion=bp.Loop(times=2) if kind == "looped" else bp.Once(),
                    head=bp.LanguageHead(tied=True))


def step_of(module: torch.nn.Module, ids_BT: torch.Tensor, parameters: list[torch.nn.Parameter]) -> Callable[[], None]:
    """Forward, backward, and gradients dropped again."""
    def step() -> None:
        logits = module(ids_BT[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
        torch.autograd.backward(loss)
        for parameter in parameters:
            parameter.grad = None
    return step


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int = REPEATS,
          seconds: float = SECONDS) -> dict[str, float]:
    """Median of the pairwise ratios first / second, with its bootstrap 95 % interval, and both medians in ms.

    Pairs are taken in alternating order until there are `repeats`, or `seconds` are over and there are eight.
    """
    for _ in range(2):
        first()
        second()
    pairs: list[tuple[float, float]] = []
    started = time.perf_counter()
    gc.disable()
    while len(pairs) < repeats and (len(pairs) < FEWEST or time.perf_counter() - started < seconds):
        pairs.append(_pair(first, second, swapped=len(pairs) % 2 == 1))
    gc.enable()
    times = np.array(pairs)
    quotients = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).choice(quotients, (1000, len(quotients)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    medians = np.median(times, axis=0) * 1e3
    return {"ratio": float(np.median(quotients)), "low": float(low), "high": float(high), "pairs": len(pairs),
            "subnet_ms": float(medians[0]), "extracted_ms": float(medians[1])}


def _pair(first: Callable[[], None], second: Callable[[], None], swapped: bool) -> tuple[float, float]:
    times = [0.0, 0.0]
    for side in ((1, 0) if swapped else (0, 1)):
        began = time.perf_counter()
        (first, second)[side]()
        times[side] = time.perf_counter() - began
    return times[0], times[1]


def measure(kinds: Iterable[str], widths: Iterable[int], batches: Iterable[str] = tuple(BATCHES), repeats: int = REPEATS,
            seconds: float = SECONDS, threads: int = 1) -> list[dict[str, Any]]:
    """One row per kind, width and batch, at full and at half width: the tax of forward and backward."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    rows = []
    for kind in kinds:
        for width in widths:
            space = slicing_space(kind, width)
            net = bp.Supernet(space, seed=0)
            for genome in space.enumerate():
                architecture = space.architecture(genome)
                for name in batches:
                    measured = _tax(net, architecture, BATCHES[name], repeats, seconds)
                    rows.append({"kind": kind, "width": architecture.plan.width, "of": width, "batch": name,
                                 "tokens": BATCHES[name] * LENGTH, "threads": threads, **measured})
    return rows


def _tax(net: bp.Supernet, architecture: bp.Architecture, batch: int, repeats: int, seconds: float) -> dict[str, float]:
    ids_BT = torch.randint(256, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    model = net.extract(architecture)
    return ratio(step_of(net.subnet(architecture), ids_BT, list(net.parameters())),
                 step_of(model, ids_BT, list(model.parameters())), repeats, seconds)


def main() -> None:
    """Print the rows as JSON, with the worst ratio of large batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--batches", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per row, at most")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = measure(options.kinds, options.widths, options.batches, options.repeats, options.seconds, options.threads)
    large = [row["ratio"] for row in rows if row["batch"] == "large"]
    print(json.dumps({"rows": rows, "aim": AIM, "worst": max(large, default=None)}, indent=1))


if __name__ == "__main__":
    main()
