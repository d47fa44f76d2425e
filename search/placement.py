"""Where a sweep computes, in which numbers, and on how many processes its supernet is trained: checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..evaluators.devices import available_devices, check_device
from ..evaluators.precision import check_dtype, check_precision
from .executors.base import available_cpus, check_count

if TYPE_CHECKING:
    from .sweep import Sweep

__all__ = ["DEFAULTS", "check_placement", "supernet_threads", "told"]

DEFAULTS = {"device": "cpu", "dtype": "float32", "supernet_workers": 1, "inherit": False, "auxiliary": {}}


def check_placement(sweep: Sweep) -> None:
    """Raise ValueError for a device that is not there, a type it does not compute in, or workers without a Ray."""
    check_count("supernet_workers", sweep.supernet_workers)
    short = check_dtype(sweep.dtype)
    if short and not sweep.trains:
        raise ValueError(f"dtype is what trainings and scores on a task compute in: got {sweep.dtype!r} in a sweep without "
                         "any; leave it out")
    if sweep.device != "cpu" and not (sweep.trains or sweep.needs_model):
        raise ValueError(f"device is where models are trained and judged: got {sweep.device!r}, and no objective of this "
                         "sweep needs a model; leave it out")
    if sweep.supernet_workers > 1:
        _check_workers(sweep)
    if sweep.executor_name == "ray":
        _check_ray(sweep)
    if not _is_elsewhere(sweep):
        _check_here(sweep, short)


def told(sweep: Sweep) -> dict[str, Any]:
    """What of it is not at its default, as the journal has it."""
    return {name: getattr(sweep, name) for name, default in DEFAULTS.items() if getattr(sweep, name) != default}


def supernet_threads(sweep: Sweep) -> int:
    """Torch threads of each process that trains the supernet: half of this machine's cores between them.

    On two cores, a second thread gained 13 % on an idle machine and lost several-fold beside any other load.
    """
    return 1 if sweep.ray_address else max(1, available_cpus() // (2 * sweep.supernet_workers))


def _check_workers(sweep: Sweep) -> None:
    if not sweep.supernet:
        raise ValueError(f"supernet_workers train shared weights: got {sweep.supernet_workers} in a sweep without; give "
                         "supernet=True")
    if sweep.executor_name != "ray":
        raise ValueError(f"supernet_workers run on Ray: got {sweep.supernet_workers} with executor "
                         f"{sweep.executor_name!r}; use executor='ray'")
    gpus = len([name for name in available_devices() if name.startswith("cuda")])
    if sweep.device == "cuda" and sweep.ray_address is None and sweep.supernet_workers > gpus > 0:
        raise ValueError(f"supernet_workers get a GPU each: got {sweep.supernet_workers}, this machine has {gpus}; use at "
                         "most as many, or address= of a cluster")


def _check_ray(sweep: Sweep) -> None:
    if sweep.device not in ("cpu", "cuda"):
        raise ValueError(f"workers on Ray see the GPUs they reserve and no others: got device={sweep.device!r}; use 'cuda', "
                         "or executor='local'")
    if sweep.device == "cuda" and getattr(sweep.executor, "gpus", 1) == 0:
        raise ValueError("device 'cuda' needs workers with a GPU: this executor reserves none; give it gpus=1, or a fraction "
                         "to share one")


def _is_elsewhere(sweep: Sweep) -> bool:
    """Whether everything that needs the device happens on a cluster, whose machines answer for it themselves."""
    return sweep.ray_address is not None and (not sweep.supernet or sweep.supernet_workers > 1)


def _check_here(sweep: Sweep, short: str | None) -> None:
    try:
        device = check_device(sweep.device)
    except ValueError as absent:
        if sweep.ray_address is None:
            raise
        raise ValueError(f"{absent}; the supernet is trained in this process unless supernet_workers=2 or more train it on "
                         "the cluster") from absent
    check_precision(device, short)
