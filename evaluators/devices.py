"""Names of devices, and what a measurement must say about the machine it was made on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..registry import unknown

__all__ = ["available_devices", "check_device", "device_fingerprint", "keep_freed_memory",
           "machine_share", "on_threads", "release"]


def available_devices() -> list[str]:
    """Names of the devices of this machine, the CPU first."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def check_device(device: str) -> torch.device:
    """The torch device called `device`; "cuda" is "cuda:0".

    Raises:
        ValueError: no such device on this machine; the text lists those that exist.
    """
    known = available_devices()
    name = "cuda:0" if device == "cuda" else str(device)
    if name not in known:
        if name.startswith("cuda:") and name[5:].isdigit():
            raise ValueError(f"device {device!r} is not on this machine; it has: {', '.join(known)}")
        raise ValueError(unknown("device", device, [*known, "cuda"] if len(known) > 1 else known))
    return torch.device(name)


def device_fingerprint(device: str = "cpu") -> dict[str, Any]:
    """What a number measured on `device` depends on: model, cores, torch, threads and load.

    `load` is the one-minute average of runnable processes; well above 1 during a single-threaded measurement
    it says that something else was running.
    """
    target = check_device(device)
    found: dict[str, Any] = {
        "device": str(target), "name": _cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None}
    if target.type == "cuda":
        found |= {"name": torch.cuda.get_device_name(target), "cuda": torch.version.cuda}
    return found


@contextlib.contextmanager
def on_threads(threads: int | None) -> Iterator[None]:
    """Pin torch to `threads` threads inside; None leaves them as they are."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def machine_share(alone: bool) -> Iterator[None]:
    """Take turns with the other evaluations on this machine: several compute at once, a measurement runs alone.

    An advisory lock per user, released by the kernel when a process dies. Where there is no `fcntl` (Windows) nothing
    waits. Two vCPUs are often one core, and a neighbour then doubles a latency.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"bodyplan-{os.getuid()}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for reuse instead of giving them back to the kernel; elsewhere this does nothing.

    Training on a CPU frees and takes the same few megabytes at every step, and zeroing fresh pages for them cost 13 % of
    a supernet step of the demo space (two cores, one thread). The process keeps up to 1 GiB more than it needs.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3             # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)


def release(module: torch.nn.Module) -> None:
    """Give back what a module and everything that is gone already took of a GPU; the module then lies on the CPU."""
    module.cpu()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@functools.cache
def _cpu_name() -> str:
    """The processor's own name: /proc/cpuinfo on Linux, platform's word elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
