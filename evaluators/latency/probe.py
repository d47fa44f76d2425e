"""Latency as an objective: measured, never modelled, with an interval, under stated conditions.

One measurement is a median over repeats inside a time budget, after a warm-up that ends when the times have
settled. The interval is the bootstrap 95 % interval of that median: it covers the jitter inside one
measurement, not the drift of a machine between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..devices import check_device, machine_share, on_threads, pinned
from ..objectives import Estimate, Objective
from .clock import Work, measured
from .energy import energy_mj
from .memory import peak_bytes
from .spread import Measurement, quietest
from .work import DTYPES, check_conditions, placed, rotated, work_of

__all__ = ["LatencyProbe", "Mode", "Phase", "example_inputs", "latency"]

Phase = Literal["decode", "prefill", "train"]
Mode = Literal["eager", "compiled", "graph"]


@dataclass(frozen=True)
class LatencyProbe:
    """`evaluate` of a latency objective: milliseconds of `module` under fixed conditions."""

    device: str = "cpu"
    batch: int = 1
    length: int = 256
    phase: Phase = "decode"
    dtype: str = "float32"
    budget_ms: float = 50.0
    threads: int = 1
    mode: Mode = "eager"

    def __call__(self, architecture: Any, module: nn.Module) -> Estimate:
        """Measure; raises ValueError where the device is absent or the model has no decode step."""
        found = self.measured(architecture, module)
        return Estimate(found.median_ms, found.low_ms, found.high_ms, found.note)

    def measured(self, architecture: Any, module: nn.Module, attempts: int = 1, resources: bool = False) -> Measurement:
        """The measurement with all that is known of it: repeats, outliers, whether the machine was quiet.

        attempts: how often, at most, until the machine is quiet. resources: peak memory and energy too, where the machine
        can tell.
        """
        work, device = self.workload(architecture, module), check_device(self.device)
        with on_threads(self.threads), pinned(self.threads), machine_share(alone=True):
            found = quietest(lambda: measured(work, device, self.budget_ms), attempts)
            if not resources:
                return found
            return replace(found, peak_bytes=peak_bytes(work, device, self.mode),
                           energy_mj=energy_mj(work, device, found.median_ms))

    def workload(self, architecture: Any, module: nn.Module) -> Work:
        """What is timed: one forward pass, one token after a prefill of `length` tokens, or a pass there and back."""
        device, dtype = check_device(self.device), DTYPES[self.dtype]
        is_training = self.phase == "train"
        inputs = model_inputs(architecture.plan, self.batch, self.length, device, dtype)
        if self.phase == "decode" and (not hasattr(module, "step") or inputs[0].is_floating_point()):
            raise ValueError("decode latency needs a language model with init_state and step: got "
                             f'{type(module).__name__}; use phase="prefill"')
        model: Any = placed(module, device, dtype, copied=is_training).eval()
        source = {"source": inputs[0]} if getattr(model, "reads_source", False) else {}
        return work_of(model, inputs, self.phase, self.mode, device,
                       lambda: model.init_state(self.batch, dtype=dtype, device=device, **source))


def latency(device: str = "cpu", batch: int = 1, length: int = 256, phase: Phase = "decode", dtype: str = "float32",
            budget_ms: float = 50.0, threads: int = 1, mode: Mode = "eager") -> Objective:
    """Milliseconds per token ("decode": one new token after `length` tokens), per forward pass ("prefill"), or per
    forward and backward pass ("train").

    Candidates are measured one by one on the machine that evaluates them, `threads` threads each, pinned where the
    system allows, about `budget_ms` of repeats per candidate after the warm-up; a candidate slower than the budget gets
    three repeats. Image models are measured with phase="prefill" or "train"; `length` is then ignored. mode: "eager",
    "compiled" (torch.compile, whose compilation does not count and takes seconds a candidate) or "graph" (a CUDA graph,
    replayed). Where the machine is not quiet, the estimate's note says so.

    Raises:
        ValueError: an unknown or absent device, phase, mode or dtype, or a size below 1.
    """
    check_conditions(check_device(device), phase, mode, dtype, batch=batch, length=length, threads=threads,
                     budget_ms=budget_ms)
    probe = LatencyProbe(device, batch, length, phase, dtype, budget_ms, threads, mode)
    suffix = ("" if device == "cpu" else "_" + device.replace(":", "")) + ("" if mode == "eager" else f"_{mode}")
    return Objective(f"{phase}_latency{suffix}", unit="ms", evaluate=probe, needs="model", device=device)


def model_inputs(plan: Any, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Random inputs that fit the plan's embedding, enough of them to leave the cache: ids (batch, length), series,
    frames, or pixels (batch, C, H, W) or those of videos."""
    embed = plan.embed
    if hasattr(embed, "vocab"):
        return rotated((batch, length), device, torch.int64, vocab=int(embed.vocab))
    if hasattr(embed, "features"):
        return rotated((batch, length * int(embed.stack), int(embed.features)), device, dtype)
    if hasattr(embed, "steps"):
        return rotated((batch, int(embed.steps), length), device, torch.float32)
    return rotated((batch, int(embed.channels), *map(int, embed.sides)), device, dtype)


def example_inputs(plan: Any, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One random input that fits the plan's embedding."""
    return model_inputs(plan, batch, length, device, dtype)[0]
