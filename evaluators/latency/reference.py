"""A fixed piece of work, timed beside what is measured, since the speed of a machine moves.

A virtual machine's neighbours, heat and clocks change what the same call takes by tens of per cent within minutes, and
everything on the machine alike. A call is therefore timed between two runs of a reference, and the time is given for the
speed at which the reference takes `usual_ms`: time * usual_ms / (the mean of the two runs). The usual time is found once for
every processor, torch and number of threads, and kept in the system's folder for temporary files, so that all processes give
their numbers at the same speed.

The reference is a little of what networks do on a CPU. GPUs have none: their clocks stand in the fingerprint.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..devices import device_fingerprint

__all__ = ["Reference", "reference_for", "stopwatch"]

ROWS, WIDTH, HEADS, KEYS = 256, 128, 4, 64
PRODUCTS, SMALL, LAYERS, COPIED = 4, 40, 2, 1 << 18
WARM, CALIBRATING_SECONDS = 5, 0.5
VERSION = 1             # of the work below: numbers at the speed of another version cannot be compared


@dataclass(frozen=True)
class Reference:
    """`timed()` runs the work once and gives its milliseconds; `usual_ms` is what it takes at the speed numbers are for."""

    usual_ms: float
    timed: Callable[[], float]


def reference_for(device: torch.device) -> Reference | None:
    """The reference of a device, for torch's threads as they are now; None for what is no CPU."""
    return _reference(torch.get_num_threads()) if device.type == "cpu" else None


@functools.cache
def _reference(threads: int) -> Reference:
    work, watch = _work(), stopwatch()

    def timed() -> float:
        return watch(work)[0]

    return Reference(_usual_ms(threads, timed), timed)


def _work() -> Callable[[], Any]:
    """Products, the same small operations again and again, a few layers of many different ones, and a copy: about three
    milliseconds at 2.4 GHz. Different ones matter: they slow down more than others when caches are shared."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight, rows, row, source = random(WIDTH, WIDTH), random(ROWS, WIDTH), random(1, WIDTH), torch.ones(COPIED)
    wide, kernel = random(2 * WIDTH, WIDTH), random(WIDTH, 1, 4)
    keys, values = random(1, HEADS, KEYS, WIDTH // HEADS), random(1, HEADS, KEYS, WIDTH // HEADS)
    target = torch.zeros_like(source)

    def layer(x: Tensor) -> Tensor:
        query = functional.linear(functional.layer_norm(x, (WIDTH,)), weight).view(1, 1, HEADS, -1).transpose(1, 2)
        mixed = torch.softmax(query @ keys.transpose(-1, -2) * 0.1, -1) @ values
        x = x + 0.01 * functional.linear(mixed.transpose(1, 2).reshape(1, WIDTH), weight)
        gate, value = functional.linear(x, wide).chunk(2, -1)
        window = torch.cat([(functional.silu(gate) * value).view(1, 1, WIDTH)] * 4, 1).transpose(1, 2)
        x = x + 0.01 * torch.sigmoid(functional.conv1d(window, kernel, groups=WIDTH).squeeze(-1))
        x = torch.where(x > 0, x, x.exp() - 1)
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        kept = (x + 0.01 * torch.einsum("bd,de->be", x, weight).tanh()).clone()
        kept[:, :4] = 0
        return kept + 0.01 * torch.cumsum(kept, -1)

    def run() -> Tensor:
        many, few, one = rows, row, row
        for _ in range(PRODUCTS):
            many = torch.relu(many @ weight) * 0.1 + rows
        for _ in range(SMALL):
            few = torch.relu(few) * 0.1 + row
        for _ in range(LAYERS):
            one = layer(one)
        return target.copy_(source)

    return run


def stopwatch() -> Callable[[Callable[[], Any]], tuple[float, float]]:
    """What runs a call on a CPU and gives its milliseconds: what counts, and those of the wall.

    On one of torch's threads what counts is the time the thread had a processor, so that other processes in its way are not
    part of the number, unless it waited of itself (for a lock, a disk, another thread): then, and on several threads, that of
    the wall. Linux tells the two apart; elsewhere the wall counts.
    """
    try:
        import resource
    except ImportError:                                   # Windows
        resource = None                                                                  # type: ignore[assignment]
    own: Any = getattr(resource, "RUSAGE_THREAD", None) if torch.get_num_threads() == 1 else None

    def on_the_wall(call: Callable[[], Any]) -> tuple[float, float]:
        start = time.perf_counter_ns()
        call()
        wall = (time.perf_counter_ns() - start) / 1e6
        return wall, wall

    def on_the_thread(call: Callable[[], Any]) -> tuple[float, float]:
        waits = resource.getrusage(own).ru_nvcsw
        began, start = time.perf_counter_ns(), time.thread_time_ns()
        call()
        ended = time.thread_time_ns()
        wall = (time.perf_counter_ns() - began) / 1e6
        return wall if resource.getrusage(own).ru_nvcsw > waits else (ended - start) / 1e6, wall

    return on_the_wall if own is None else on_the_thread


def _usual_ms(threads: int, timed: Callable[[], float]) -> float:
    """What all processes of this user take as usual: what the first one measured."""
    name = str(device_fingerprint("cpu").get("name"))
    key = f"{name}, torch {torch.__version__}, {threads} threads, reference {VERSION}"
    path = Path(tempfile.gettempdir()) / f"bodyplan-{_user()}-reference.json"
    try:
        with path.open("a+", encoding="utf-8") as file:
            _locked(file)
            file.seek(0)
            known = _read(file.read())
            if key not in known:
                known[key] = _calibrated(timed)
                file.truncate(0)
                file.write(json.dumps(known, indent=1) + "\n")
            return known[key]
    except OSError:                                       # nowhere to keep it: this process has its own
        return _calibrated(timed)


def _calibrated(timed: Callable[[], float]) -> float:
    for _ in range(WARM):
        timed()
    ends, times = time.monotonic() + CALIBRATING_SECONDS, [timed()]
    while time.monotonic() < ends:
        times.append(timed())
    return float(f"{sorted(times)[len(times) // 2]:.6g}")


def _read(text: str) -> dict[str, float]:
    """What the file says; a broken one says nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {key: float(value) for key, value in found.items() if isinstance(value, (int, float)) and value > 0}


def _locked(file: Any) -> None:
    """Wait for the file, where the system has such locks; closing it lets go."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
