"""Names of devices, and what a measurement must say about the machine it was made on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..registry import unknown

__all__ = ["available_devices", "cache_bytes", "check_device", "device_fingerprint", "identity", "keep_freed_memory",
           "machine_share", "on_threads", "pinned", "release"]

LAST_CACHE = 32 << 20      # assumed where the system does not say


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
    """What a number measured on `device` depends on: model, cores, clocks, versions, threads and load.

    `load` is the one-minute average of runnable processes; well above 1 during a single-threaded measurement
    it says that something else was running. What the system does not tell is left out.
    """
    target = check_device(device)
    found: dict[str, Any] = {
        "device": str(target), "kind": target.type, "name": _cpu_name(), "cores": os.cpu_count(),
        "machine": platform.machine(), "memory_bytes": _memory_bytes(), "cache_bytes": cache_bytes(torch.device("cpu")),
        **_cpu_clocks(), "torch": torch.__version__, "python": platform.python_version(),
        "threads": torch.get_num_threads(), "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None}
    if target.type == "cuda":
        properties = torch.cuda.get_device_properties(target)
        found |= {"host": _cpu_name(), "name": properties.name, "memory_bytes": properties.total_memory,
                  "cores": properties.multi_processor_count, "cache_bytes": cache_bytes(target),
                  "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version(),                          # type: ignore[no-untyped-call]
                  **_gpu_state(properties)}
    return {key: value for key, value in found.items() if value is not None}


def identity(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What of a fingerprint tells one kind of device from another: numbers of two identities are never mixed."""
    return {key: fingerprint.get(key) for key in ("kind", "name", "cores", "machine")}


@functools.cache
def cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before the memory of a device; 32 MiB where the system does not say."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or LAST_CACHE
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * factor)
    return max(sizes, default=LAST_CACHE)


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Keep the calling thread on `threads` of the processors it may use, the last ones, where the system allows it.

    The first processors serve most interrupts. Threads started inside inherit it; those of a pool that exists already
    stay where they are. None, or as many threads as processors, leaves everything as it is.
    """
    allowed: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if threads is None or threads >= len(allowed):
        yield
        return
    try:
        os.sched_setaffinity(0, sorted(allowed)[-threads:])
    except OSError:                                # not allowed in this container
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


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


def _memory_bytes() -> int | None:
    """Bytes of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cpu_clocks() -> dict[str, Any]:
    """Megahertz now and at most, and the governor, as far as Linux tells."""
    found: dict[str, Any] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if clocks:
        found["clock_mhz"] = round(max(clocks))
    frequencies = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    with contextlib.suppress(OSError, ValueError):
        found["clock_max_mhz"] = int((frequencies / "cpuinfo_max_freq").read_text()) // 1000
        found["governor"] = (frequencies / "scaling_governor").read_text().strip()
    return found


def _gpu_state(properties: Any) -> dict[str, Any]:
    """Driver, clocks (MHz), power limit (W) and temperature of a GPU as nvidia-smi tells them; empty where it is missing."""
    keys = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    names = ("driver", "clock_mhz", "clock_max_mhz", "memory_clock_mhz", "power_limit_w", "temperature_c")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
    if hasattr(properties, "uuid"):
        command.append(f"--id=GPU-{properties.uuid}")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    numbers: dict[str, Any] = {}
    for name, text in zip(names, (v.strip() for v in told.strip().partition("\n")[0].split(",")), strict=False):
        with contextlib.suppress(ValueError):
            numbers[name] = text if name == "driver" else float(text)
    return numbers
