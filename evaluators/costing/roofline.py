"""The least time that a device of a given speed and bandwidth can take (Roofline, Williams et al., 2009)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..devices import check_device, device_fingerprint, on_threads
from .workloads import ITEM_BYTES, OperatorCost, Workload, workload

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.operator import Length

__all__ = ["Bound", "Roof", "Roofline", "measured_roof", "roof_of", "roofline", "roofline_lines"]

MATRIX, STREAM_BYTES, REPEATS = 1024, 1 << 27, 7


@dataclass(frozen=True)
class Roof:
    """A device's limits. flops: operations a second of matrix products in `dtype`; bandwidth: bytes a second to memory, read
    and written together. source: where the numbers come from."""

    name: str
    flops: float
    bandwidth: float
    dtype: str
    source: str

    def __post_init__(self) -> None:
        for label, value in (("flops", self.flops), ("bandwidth", self.bandwidth)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{label} of a roof is a positive number per second: got {value!r} for {self.name}")

    @property
    def ridge(self) -> float:
        """Operations per byte above which products take longer than memory."""
        return self.flops / self.bandwidth


# Data sheets, dense: NVIDIA H200 (SXM) and H100 (SXM), A100 (80 GB SXM).
KNOWN = {
    "h200": Roof("NVIDIA H200", 989e12, 4.8e12, "bfloat16", "data sheet"),
    "h100": Roof("NVIDIA H100 SXM", 989e12, 3.35e12, "bfloat16", "data sheet"),
    "a100": Roof("NVIDIA A100 80GB SXM", 312e12, 2.039e12, "bfloat16", "data sheet"),
}


@dataclass(frozen=True)
class Bound:
    """An operator and the least time it can take: of its products at full speed, and of its bytes at full bandwidth."""

    work: OperatorCost
    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)

    @property
    def by(self) -> str:
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


@dataclass(frozen=True)
class Roofline:
    """The least time of a network, operator by operator. Nothing overlaps between operators here, and every one reads its
    input from memory and writes its output there: fusing across operators can take less."""

    roof: Roof
    workload: Workload
    bounds: tuple[Bound, ...]

    @property
    def ms(self) -> float:
        """The least time of all operators one after the other, in milliseconds."""
        return sum(bound.ms for bound in self.bounds)


def roof_of(device: str, dtype: str = "float32") -> Roof:
    """The limits of a device: "h200", "h100" and "a100" by their data sheets, a device of this machine by measurement.

    Raises:
        ValueError: neither known by name nor on this machine; or a data sheet that is about another type.
    """
    if device.lower() in KNOWN:
        roof = KNOWN[device.lower()]
        if dtype not in (roof.dtype, "float16"):
            raise ValueError(f"the data sheet of {roof.name} is taken for {roof.dtype}: got dtype {dtype!r}; use "
                             f"{roof.dtype!r}")
        return roof
    return measured_roof(device, dtype)


def measured_roof(device: str = "cpu", dtype: str = "float32", threads: int = 1) -> Roof:
    """What this machine reaches: the fastest of several square products, and of several copies larger than caches.

    Both are what torch gets, so an upper limit of the workload's speed only as far as torch's own kernels are.
    """
    target, kind = check_device(device), getattr(torch, dtype)
    if dtype not in ITEM_BYTES or not kind.is_floating_point:
        raise ValueError(f"a roof is measured in float32, bfloat16 or float16: got {dtype!r}")
    size = MATRIX if target.type == "cpu" else 8 * MATRIX
    stream = STREAM_BYTES if target.type == "cpu" else 16 * STREAM_BYTES
    with on_threads(threads), torch.inference_mode():
        a, b = (torch.randn(size, size, device=target).to(kind) for _ in range(2))
        product = _fastest(lambda: a @ b, target)
        source = torch.ones(stream // 4, dtype=torch.float32, device=target)
        made = torch.empty_like(source)
        copy = _fastest(lambda: made.copy_(source), target)
    name = str(device_fingerprint(device)["name"])
    return Roof(name, 2.0 * size**3 / product, 2.0 * stream / copy, dtype,
                f"measured with torch {torch.__version__}" + (f", threads: {threads}" if target.type == "cpu" else ""))


def roofline(architecture: Architecture, device: str | Roof = "cpu", length: Length | None = None, phase: str = "prefill",
             batch: int = 1, dtype: str = "float32") -> Roofline:
    """The least time of an architecture on a device, see `Roofline`, `workload` and `roof_of`."""
    roof = device if isinstance(device, Roof) else roof_of(device, dtype)
    work = workload(architecture, length, phase, batch, dtype)
    bounds = tuple(Bound(row, 2e3 * row.macs / roof.flops, 1e3 * row.least / roof.bandwidth) for row in work.rows)
    return Roofline(roof, work, bounds)


def roofline_lines(found: Roofline) -> Iterator[str]:
    """The table of a roofline: what each operator does, moves, and takes at least."""
    roof, work = found.roof, found.workload
    yield (f"{roof.name}: {roof.flops / 1e9:,.1f} GFLOP/s in {roof.dtype}, {roof.bandwidth / 1e9:,.1f} GB/s, ridge at "
           f"{roof.ridge:.1f} Op/B ({roof.source})")
    yield f"{work.phase} of {work.length} tokens, batch {work.batch}, {work.dtype}; times are the least possible"
    yield ""
    yield (f"{'place':<22}{'operator':<34}{'MACs':>10}{'hidden':>10}{'FFT':>10}{'scan':>10}{'elementwise':>12}{'bytes':>10}"
           f"{'Op/B':>8}{'passes':>8}{'ms':>10}  bound by")
    for bound in found.bounds:
        row = bound.work
        yield (f"{row.place[:21]:<22}{row.label[:33]:<34}{_short(row.macs):>10}{_short(row.hidden):>10}"
               f"{_short(row.transforms):>10}{_short(row.scans):>10}{_short(row.elementwise):>12}{_short(row.least):>10}"
               f"{row.intensity:>8.1f}{'–' if row.passes is None else f'{row.passes:.1f}':>8}{bound.ms:>10.4f}  {bound.by}")
    yield ""
    yield (f"at least {found.ms:.4f} ms; weights {_short(work.total('weights'))} B, states {_short(work.total('state'))} B, "
           f"peak {_short(work.peak_bytes)} B of activations")


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _fastest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of several calls, the first one aside."""
    def once() -> float:
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()
    return min(once() for _ in range(REPEATS))
