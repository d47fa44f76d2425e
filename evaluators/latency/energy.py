"""Energy of a call, where the machine has a counter: NVML for NVIDIA GPUs, RAPL for the processor's packages.

The counter is that of the whole GPU or package: what idles and what else runs there is part of the number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from .clock import Work

__all__ = ["energy_counter", "energy_mj"]

POWERCAP = Path("/sys/class/powercap")
TICKS = 10            # of the counter that a measurement spans: a second of NVML, ten milliseconds of RAPL
MOST_SECONDS = 2.0
MOST_CALLS = 100_000


def energy_mj(work: Work, device: torch.device, median_ms: float) -> float | None:
    """Millijoules of one call, over as many as make the counter tick often; None without a counter, or where it stands
    still for two seconds. A machine that cannot tell is not one that needs nothing."""
    counter = energy_counter(device)
    if counter is None or not median_ms > 0:
        return None
    try:
        return spent(work, counter, lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)
    except OSError:
        return None


def spent(work: Work, counter: Callable[[], float], wait: Callable[[], None],
          clock: Callable[[], float] = time.monotonic) -> float | None:
    """Millijoules of one call between the first tick of the counter and the one after which it has ticked often enough."""
    with torch.inference_mode(not work.grads):
        ends, calls, ticks = clock() + MOST_SECONDS, 0, 0
        start = last = counter()
        started = until = 0
        while ticks <= TICKS and clock() < ends and calls < MOST_CALLS:
            work.before()
            work.run()
            wait()
            calls += 1
            now = counter()
            if now != last:
                ticks, last = ticks + 1, now
                if ticks == 1:
                    start, started = now, calls
                until = calls
    return None if ticks < 2 else (last - start) / (until - started)


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads millijoules since some moment; None where there is no counter or it may not be read."""
    if device.type == "cuda":
        return nvml_counter(device)
    return rapl_counter(POWERCAP) if device.type == "cpu" else None


def nvml_counter(device: torch.device) -> Callable[[], float] | None:
    """The counter of a GPU, through the package nvidia-ml-py where it is installed (Volta and later)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is None:
            return None
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def rapl_counter(folder: Path) -> Callable[[], float] | None:
    """The sum of the packages' counters, past their turning over; most systems let only root read them."""
    packages: list[tuple[Path, int]] = []
    last: dict[Path, int] = {}
    for path in sorted(folder.glob("*-rapl:*")):
        try:
            if (path / "name").read_text().startswith("package"):
                packages.append((path / "energy_uj", int((path / "max_energy_range_uj").read_text())))
                last[packages[-1][0]] = int(packages[-1][0].read_text())
        except (OSError, ValueError):
            return None
    if not packages:
        return None
    total = dict.fromkeys(last, 0)

    def read() -> float:
        for path, span in packages:
            now = int(path.read_text())
            total[path] += (now - last[path]) % (span + 1)
            last[path] = now
        return sum(total.values()) / 1000
    return read
