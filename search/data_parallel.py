"""Training one supernet on several processes: Ray Train starts them, torch joins them, gradients are summed.

Ray Train reserves the workers' resources, starts them, sets up torch's process group (gloo on CPUs, nccl on GPUs)
and notices when one is lost. What they do in a step, and why not through `DistributedDataParallel`, is in
`evaluators/distributed.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import BodyplanError
from .executors.base import check_count
from .executors.cluster import checked_address, joined_ray, knock, own_paths, private_ray
from .worker import THREAD_VARIABLES

if TYPE_CHECKING:
    from torch import nn

    from ..evaluators.tasks.base import Task
    from ..evaluators.training import TrainingRecord

__all__ = ["train_supernet"]

RESERVED = ("group", "device", "threads")
SWITCHES = {"RAY_TRAIN_METRICS_ENABLED": "0"}          # besides those that ../executors/cluster.py sets


def train_supernet(net: nn.Module, task: Task, steps: int, workers: int = 2, *, address: str | None = None,
                   cpus: float = 1, gpus: bool = False, threads: int = 1, retries: int = 0,
                   **options: Any) -> TrainingRecord:
    """Train a supernet, or a plain module, on `workers` processes; the weights of `net` are then the trained ones.

    A step is the step of `evaluators.train` with its visits dealt over the workers (round-robin; cut into parts of
    the batch where there are fewer visits than workers), so the result is that of one worker, to rounding. A
    private Ray takes five to ten seconds to start and is gone afterwards.

    Args:
        workers: processes; each holds all weights.
        address: `host:port` of a running Ray cluster, or "auto"; None starts a private Ray on this machine.
        cpus: what a worker reserves of Ray's CPUs. gpus: whether it also gets a GPU and trains there.
        threads: torch threads of a worker.
        retries: how often all workers are started again when one is lost; with a `checkpoint` they go on from it.
        options: what `train` takes besides: `strategy`, `lr`, `seed`, `checkpoint`, `resume`, `accumulate`, and so
            on. The checkpoint is written on the machine of the first worker, and `progress` is called there.

    Raises:
        ValueError: a bad argument, before Ray is started where it can be told.
        BodyplanError: the training diverged, a worker was lost, or no Ray answers at `address`.
    """
    import safetensors.torch

    from ..evaluators.training import TrainingRecord

    _check(workers, threads, retries, address, options)
    path = options.get("checkpoint")
    if path is not None and Path(path).exists() and not options.get("resume"):
        raise ValueError(f"nothing is overwritten: {path} holds a training; give resume=True to continue it, or "
                         "another file")
    if path is not None:
        options = {**options, "checkpoint": os.path.abspath(path), "resume": True}
    given = {"net": net, "task": task, "steps": steps, "gpus": gpus, "threads": threads, "options": options}
    with _connection(address, math.ceil(workers * cpus)) as ray, _folder() as folder:
        weights, record = _fit(ray, given, folder, workers=workers, cpus=cpus, gpus=gpus, threads=threads,
                               retries=retries)
    net.load_state_dict(safetensors.torch.load(weights))
    return TrainingRecord(**record)


def run_worker(given: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """What every worker does, within torch's process group. Returns weights and record; the first worker's are kept."""
    import safetensors.torch
    import torch
    from ray.train.torch import get_device

    from ..evaluators.distributed import Group
    from ..evaluators.training import train

    torch.set_num_threads(given["threads"])
    net = given["net"]
    record = train(net, given["task"], given["steps"], device=str(get_device()) if given["gpus"] else None,
                   group=Group.current(), **given["options"])
    weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    return safetensors.torch.save(weights), vars(record)


def _fit(ray: ModuleType, given: dict[str, Any], folder: str, *, workers: int, cpus: float, gpus: bool, threads: int,
         retries: int) -> Any:
    """Run the workers to their end and take the first one's answer."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    variables = {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": own_paths()}
    trainer = TorchTrainer(
        run_worker, train_loop_config=given,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus,
                                     resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})}),
        run_config=RunConfig(name="supernet", storage_path=folder, failure_config=FailureConfig(max_failures=retries),
                             worker_runtime_env={"env_vars": variables}, **_quiet()))
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as failed:
        raise _translated(failed) from failed


def _translated(failed: Any) -> Exception:
    """What one worker raised, if it is an answer to the user; else that a worker was lost."""
    for error in getattr(failed, "worker_failures", {}).values():
        found = getattr(error, "cause", None) or error
        if isinstance(found, (BodyplanError, ValueError)):
            return found
    return BodyplanError(f"data-parallel training ended early: {failed}")


def _quiet() -> dict[str, Any]:
    from ray import train

    return {"logging_config": train.LoggingConfig(log_level="ERROR")} if hasattr(train, "LoggingConfig") else {}


@contextlib.contextmanager
def _connection(address: str | None, cpus: int) -> Iterator[ModuleType]:
    added = {name: value for name, value in SWITCHES.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with joined_ray(address) if address else private_ray(cpus) as ray:
            yield ray
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder for what Ray Train writes; gone at the end."""
    folder = tempfile.mkdtemp(prefix="bp-train-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(workers: int, threads: int, retries: int, address: str | None, options: dict[str, Any]) -> None:
    from ..evaluators.strategies import resolve

    check_count("workers", workers)
    check_count("threads", threads)
    if address is not None:
        knock(checked_address(address))
    if not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries must be a whole number of at least 0: got {retries!r}")
    odd = [name for name in RESERVED if name in options]
    if odd:
        raise ValueError(f"{odd[0]} is no option here: workers, gpus and threads say where a data-parallel training "
                         "runs")
    resolve(options.get("strategy", "sandwich"))
