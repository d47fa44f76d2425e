"""Latency as an objective: measured, never modelled, with an interval, under stated conditions.

One measurement is a median over repeats inside a time budget, after a warm-up that ends when the times have
settled. The interval is the bootstrap 95 % interval of that median: it covers the jitter inside one
measurement, not the drift of a machine between two of them.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .devices import check_device, machine_share, on_threads
from .objectives import Estimate, Objective

__all__ = ["LatencyProbe", "latency", "measure"]

Phase = Literal["decode", "prefill"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WINDOW = 5        # repeats compared with the previous ones to tell whether the warm-up has settled
SETTLED = 0.05    # relative change of the window's median below which it has
RESAMPLES = 200   # enough for two digits of an interval; more cost milliseconds per candidate
MOST_REPEATS = 400


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

    def __call__(self, architecture: Any, module: nn.Module) -> Estimate:
        """Measure; raises ValueError where the device is absent or the model has no decode step."""
        call = self.workload(architecture, module)
        with on_threads(self.threads), machine_share(alone=True):
            return measure(call, device=self.device, budget_ms=self.budget_ms)

    def workload(self, architecture: Any, module: nn.Module) -> Callable[[], Any]:
        """The call that is timed: one forward pass, or one token after a prefill of `length` tokens."""
        device = check_device(self.device)
        placed: Any = _placed(module, device, DTYPES[self.dtype]).eval()
        inputs = example_inputs(architecture.plan, self.batch, self.length, device, DTYPES[self.dtype])
        if self.phase == "prefill":
            return lambda: placed(inputs)
        if not hasattr(placed, "step") or inputs.is_floating_point():
            raise ValueError("decode latency needs a language model with init_state and step: got "
                             f'{type(module).__name__}; use phase="prefill"')
        with torch.inference_mode():
            source = {"source": inputs} if getattr(placed, "reads_source", False) else {}
            empty = placed.init_state(self.batch, dtype=DTYPES[self.dtype], device=device, **source)
            _, state = placed.step(inputs, empty)
        token = inputs[:, -1:]
        return lambda: placed.step(token, state)


def latency(device: str = "cpu", batch: int = 1, length: int = 256, phase: Phase = "decode",
            dtype: str = "float32", budget_ms: float = 50.0, threads: int = 1) -> Objective:
    """Milliseconds per token ("decode": one new token after `length` tokens) or per forward pass ("prefill").

    Candidates are measured one by one on the machine that evaluates them, `threads` threads each, about
    `budget_ms` of repeats per candidate after the warm-up; a candidate slower than the budget gets three
    repeats. Image models are measured with phase="prefill"; `length` is then ignored.

    Raises:
        ValueError: an unknown or absent device, phase or dtype, or a size below 1.
    """
    check_device(device)
    for label, value, allowed in (("phase", phase, ("decode", "prefill")), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ValueError(f"{label} of a latency must be one of {', '.join(allowed)}: got {value!r}")
    sizes = {"batch": batch, "length": length, "threads": threads, "budget_ms": budget_ms}
    for label, number in sizes.items():
        if number < 1:
            raise ValueError(f"{label} of a latency must be at least 1: got {number!r}")
    probe = LatencyProbe(device, batch, length, phase, dtype, budget_ms, threads)
    suffix = "" if device == "cpu" else "_" + device.replace(":", "")
    return Objective(f"{phase}_latency{suffix}", unit="ms", evaluate=probe, needs="model", device=device)


def measure(call: Callable[[], Any], device: str = "cpu", budget_ms: float = 50.0,
            least: int = 3) -> Estimate:
    """Median time of `call` in milliseconds with a bootstrap 95 % interval.

    Warm-up lasts until two windows of repeats agree within 5 %, at most one budget; then repeats are timed
    for one budget, `least` at least and 400 at most. Without gradients, garbage collection paused; on CUDA by
    events, with the stream synchronised after every repeat, so that launch gaps of the host are part of the
    number.
    """
    target = check_device(device)
    timer = _event_timer(target) if target.type == "cuda" else _clock_timer(target)
    with torch.inference_mode(), _no_collection():
        warm = _settle(lambda: timer(call), budget_ms)
        times = _repeat(lambda: timer(call), budget_ms, least)
    low, high = bootstrap_median(times)
    return Estimate(float(np.median(times)), low, high, f"median of {times.size} after {warm} warm-up calls")


def bootstrap_median(times: NDArray[np.float64], resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the median over resamples; the same times give the same interval."""
    rows = np.random.default_rng(0).integers(0, times.size, size=(resamples, times.size))
    low, high = np.quantile(np.median(times[rows], axis=1), [0.025, 0.975])
    return float(low), float(high)


def example_inputs(plan: Any, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random inputs that fit the plan's embedding: ids (batch, length), pixels (batch, C, H, W) or those of videos."""
    generator = torch.Generator().manual_seed(0)
    if hasattr(plan.embed, "vocab"):
        return torch.randint(plan.embed.vocab, (batch, length), generator=generator).to(device)
    if hasattr(plan.embed, "steps"):
        return torch.randn(batch, plan.embed.steps, length, generator=generator).to(device)
    pixels = torch.randn(batch, plan.embed.channels, *plan.embed.sides, generator=generator)
    return pixels.to(device=device, dtype=dtype)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module itself where it already is at home, else a copy: the caller's module never moves."""
    at_home = all(p.device == device and p.dtype == dtype for p in module.parameters())
    return module if at_home else copy.deepcopy(module).to(device=device, dtype=dtype)


def _clock_timer(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    wait = torch.mps.synchronize if device.type == "mps" else lambda: None

    def timed(call: Callable[[], Any]) -> float:
        start = time.perf_counter_ns()
        call()
        wait()
        return (time.perf_counter_ns() - start) / 1e6
    return timed


def _event_timer(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    def timed(call: Callable[[], Any]) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))       # type: ignore[no-untyped-call]
            start.record()
            call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end))
    return timed


def _settle(once: Callable[[], float], budget_ms: float) -> int:
    """Call until two neighbouring windows agree or the budget is spent; returns how many calls that took."""
    times: list[float] = [once()]
    while sum(times) < budget_ms and len(times) < MOST_REPEATS:
        times.append(once())
        if len(times) >= 2 * WINDOW:
            now, before = np.median(times[-WINDOW:]), np.median(times[-2 * WINDOW:-WINDOW])
            if abs(now - before) <= SETTLED * before:
                break
    return len(times)


def _repeat(once: Callable[[], float], budget_ms: float, least: int) -> NDArray[np.float64]:
    times: list[float] = []
    while len(times) < least or (sum(times) < budget_ms and len(times) < MOST_REPEATS):
        times.append(once())
    return np.array(times)
