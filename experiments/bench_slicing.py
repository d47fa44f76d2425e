"""The slicing tax: a training step through a supernet's views against the same step of the extracted module.

Each ratio is measured in one run with interleaved repeats and equal threads, so that drift of the machine hits both
sides alike. `python -m bodyplan.experiments.bench_slicing` prints JSON.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from typing import Any

import bodyplan as bp
import numpy as np
import torch

__all__ = ["measure", "slicing_space"]

REPEATS = 30


def slicing_space(mixer: Any, width: int) -> bp.Space:
    """Two layers of one mixer with a SwiGLU, at `width` and at half of it."""
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(width // 2, width),
                    body=bp.repeat(bp.Block(mixer=mixer, channel=bp.SwiGLU(ratio=2)), times=2),
                    head=bp.LanguageHead(tied=True))


MIXERS: dict[str, Any] = {
    "attention": bp.Attention(heads=2, kv_heads=1), "gated delta": bp.GatedDeltaNet(heads=2),
    "Mamba-2": bp.Mamba2(state=32, head_dim=32), "short convolution": bp.ShortConv(kernel=4), "Hyena": bp.Hyena()}


def step_of(module: torch.nn.Module, ids_BT: torch.Tensor, parameters: list[torch.nn.Parameter]) -> Callable[[], None]:
    """Forward, backward, and gradients dropped again."""
    def step() -> None:
        logits = module(ids_BT[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
        torch.autograd.backward(loss)
        for parameter in parameters:
            parameter.grad = None
    return step


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int = REPEATS) -> dict[str, float]:
    """Median of the pairwise ratios first / second, with its bootstrap 95 % interval, and both medians in ms."""
    for _ in range(3):
        first()
        second()
    times = np.zeros((repeats, 2))
    gc.disable()
    for i in range(repeats):
        for side in ((0, 1) if i % 2 else (1, 0)):
            began = time.perf_counter()
            (first, second)[side]()
            times[i, side] = time.perf_counter() - began
    gc.enable()
    pairs = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).choice(pairs, (1000, repeats))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    medians = np.median(times, axis=0) * 1e3
    return {"ratio": float(np.median(pairs)), "low": float(low), "high": float(high),
            "subnet_ms": float(medians[0]), "extracted_ms": float(medians[1])}


def measure(width: int = 128, batch: int = 16, length: int = 128, threads: int = 1) -> list[dict[str, Any]]:
    """One row per mixer and size: the tax at full and at half width, forward and backward, batch * length tokens."""
    torch.set_num_threads(threads)
    rows = []
    for name, mixer in MIXERS.items():
        space = slicing_space(mixer, width)
        net = bp.Supernet(space, seed=0)
        ids_BT = torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        for index, size in enumerate(space.widths()):
            architecture = next(a for a in map(space.architecture, space.enumerate()) if a.plan.width == size)
            subnet, model = net.subnet(architecture), net.extract(architecture)
            measured = ratio(step_of(subnet, ids_BT, list(net.parameters())),
                             step_of(model, ids_BT, list(model.parameters())))
            rows.append({"mixer": name, "width": size, "of": width, "tokens": batch * length, "threads": threads,
                         "size": "half" if index == 0 else "full", **measured})
    return rows


if __name__ == "__main__":
    print(json.dumps({"large": measure(), "small": measure(batch=1)}, indent=1))
