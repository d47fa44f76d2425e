"""Training one supernet on several processes: Ray Train starts them, torch joins them, gradients are summed.

Ray Train reserves the workers' resources, starts them, sets up torch's process group (gloo on CPUs, nccl on GPUs)
and notices when one is lost. What they do in a step, and why not through `DistributedDataParallel`, is in
`evaluators/distributed.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import BodyplanError
from .executors.base import check_count
from .executors.cluster import checked_address, joined_ray, knock, own_paths, private_ray
from .relay import Progress, Stopped, watched
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
                   progress: Progress | None = None, **options: Any) -> TrainingRecord:
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
        progress: called in this process as `progress(done, steps, loss)`, a few times a second and after the last step;
            what it raises ends the training, once its checkpoint is written.
        options: what `train` takes besides: `strategy`, `lr`, `seed`, `checkpoint`, `resume`, `accumulate`, and so
            on. The checkpoint is written by the first worker; on a cluster its folder must be one that all machines share.

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
        os.makedirs(os.path.dirname(options["checkpoint"]), exist_ok=True)
    given = {"net": net, "task": task, "steps": steps, "gpus": gpus, "threads": threads, "options": options}
    with _connection(address, math.ceil(workers * cpus)) as ray, _folder() as folder:
        _check_room(ray, {"CPU": workers * cpus, "GPU": workers * gpus}, is_private=address is None)
        weights, record = watched(ray, lambda teller: _fit(
            ray, {**given, "progress": teller}, folder, workers=workers, cpus=cpus, gpus=gpus, threads=threads,
            retries=retries), progress)
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
    net, group = given["net"], Group.current()
    if group.rank == 0:
        _check_folder(given["options"].get("checkpoint"))
    record = train(net, given["task"], given["steps"], device=str(get_device()) if given["gpus"] else None,
                   group=group, progress=given["progress"], **given["options"])
    weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    return safetensors.torch.save(weights), vars(record)


def _fit(ray: ModuleType, given: dict[str, Any], folder: str, *, workers: int, cpus: float, gpus: bool, threads: int,
         retries: int) -> Any:
    """Run the workers to their end, again where one was lost, and take the first one's answer."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    variables = {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": own_paths()}
    for attempt in range(retries + 1):
        trainer = TorchTrainer(
            run_worker, train_loop_config=given,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus,
                                         resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})}),
            run_config=RunConfig(name=f"supernet-{attempt}", storage_path=folder,
                                 worker_runtime_env={"env_vars": variables}, **_quiet()))
        try:
            return trainer.fit().return_value
        except ray.train.TrainingFailedError as failed:
            if (raised := _raised(failed)) is not None:
                raise raised from failed
            if attempt == retries:
                raise BodyplanError(f"data-parallel training ended early: {failed}") from failed
    raise AssertionError("the last attempt answers or raises")


def _raised(failed: Any) -> Exception | None:
    """What a worker raised, if it is an answer to the user and not a worker that was lost."""
    found = (getattr(error, "cause", None) or error for error in getattr(failed, "worker_failures", {}).values())
    return next((error for error in found if isinstance(error, (BodyplanError, ValueError, Stopped))), None)


def _check_room(ray: ModuleType, needs: dict[str, float], is_private: bool) -> None:
    """Raise where a private Ray will never hold all workers; warn where a cluster has to grow first."""
    has = ray.cluster_resources()
    short = [f"{need:g} {kind}, {has.get(kind, 0):g} there" for kind, need in needs.items() if need > has.get(kind, 0)]
    if short and is_private:
        raise BodyplanError(f"all workers of a training run at once: they need {'; '.join(short)}; take fewer workers, or "
                            "address= of a cluster that has room")
    if short:
        warnings.warn(f"waiting for room on Ray: the workers need {'; '.join(short)}", RuntimeWarning, stacklevel=3)


def _check_folder(checkpoint: str | None) -> None:
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ValueError(f"a checkpoint lies where all machines of a cluster see it: {Path(checkpoint).parent} is not on "
                         f"{platform.node()}, where the first worker runs; use a directory that the machines share")


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
