"""Evaluation by a pool of Ray actors, in a private Ray on this machine or in a cluster."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import sys
import time
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cloudpickle

from ...errors import BodyplanError
from ..worker import THREAD_VARIABLES, pin_threads
from .base import Evaluator, Failure, Job, Outcome, attempt, available_cpus, check_count
from .cluster import checked_address, joined_ray, knock, own_paths, private_ray
from .pool import Pool

__all__ = ["RayExecutor", "Runner"]

_SETUP_DEATHS = 3             # how many actors in a row may die while setting up
_ROOM_SECONDS = 20.0          # how long the first actor may take before we look whether Ray has room for it


class Runner:
    """What lives in an actor: the evaluator, and a name for the outcomes."""

    def setup(self, evaluator: Evaluator, threads: int) -> None:
        self.evaluator = evaluator
        self.name = f"ray-{os.getpid()}@{socket.gethostname()}"
        evaluator.setup()
        pin_threads(threads)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        return attempt(self.evaluator, Job.from_json(job), self.name).to_json()


@dataclass
class _Actor:
    """The driver's side of one actor and the one call it is busy with: its set-up, or a job."""

    handle: Any
    call: Any
    job: Job | None = None
    ready: bool = False
    started: float = 0.0


class RayExecutor(Pool[_Actor]):
    """A pool of actors, each holding the evaluator, which lies once in the object store of every node.

    Each actor has one job at a time (handing over the next costs about a millisecond), so a lost actor
    costs exactly the job that it was running: that one becomes a failed trial, the actor is replaced and
    the others go on. The evaluator's numpy arrays are read-only views of shared memory: copy what `setup`
    changes.

    A private Ray listens on loopback only, writes nothing outside a temporary directory and is shut down by
    `close`. A Ray that is already running in this process, or is joined by address, is left running.

    Args:
        workers: how many actors; None takes one per CPU (or per share of a GPU) of this machine or cluster.
        address: `host:port` or `ray://host:port` of a running cluster, or "auto"; None starts a private Ray.
        timeout: seconds one job may run before its actor is killed.
        cpus: what each actor reserves of Ray's CPUs.
        gpus: what each actor reserves of Ray's GPUs; a fraction lets actors share one.
        threads: what torch and OpenMP may use in each actor.

    Raises:
        ValueError: for a setting out of its range.
        BodyplanError: at once, when `address` does not answer.
    """

    def __init__(self, workers: int | None = None, address: str | None = None, timeout: float | None = None,
                 cpus: float = 1, gpus: float = 0, threads: int = 1):
        super().__init__(timeout)
        self._wanted = None if workers is None else check_count("workers", workers)
        self.address = None if address is None else checked_address(address)
        if cpus < 0 or gpus < 0 or (cpus + gpus == 0 and workers is None):
            raise ValueError(f"an actor reserves CPUs or GPUs, else workers= must say how many there are: got "
                             f"cpus={cpus!r} and gpus={gpus!r}")
        self._share = {"CPU": float(cpus), "GPU": float(gpus)}
        self._threads = check_count("threads", threads)
        if self.address:
            knock(self.address)
        self._count = self._wanted or available_cpus()
        self._ray: ModuleType | None = None
        self._evaluator: Any = None
        self._cleanup = contextlib.ExitStack()
        self._setup_deaths = 0

    @property
    def gpus(self) -> float:
        """What each actor reserves of Ray's GPUs."""
        return self._share["GPU"]

    @property
    def capacity(self) -> int:
        """How many actors there are; without `workers` it is known only once started."""
        return self._count

    def start(self, evaluator: Evaluator) -> None:
        assert self._ray is None, "an executor is started once"
        try:
            self._ray = self._cleanup.enter_context(self._connection())
            self._count = self._fitting_count()
            for module in cloudpickle.list_registry_pickle_by_value():     # Ray keeps a registry of its own
                self._ray.cloudpickle.register_pickle_by_value(sys.modules[module])
            self._evaluator = self._ray.put(evaluator)
            for _ in range(self._count):
                self._hire()
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._ray is not None and self._ray.is_initialized():
            for actor in self._workers:
                self._ray.kill(actor.handle)
        self._workers.clear()
        self._waiting.clear()
        self._evaluator = None
        self._cleanup.close()

    def _wait_for_one(self) -> None:
        """Return when an actor is ready; say so when a busy cluster has no room for any."""
        patience = time.monotonic() + _ROOM_SECONDS
        while not any(actor.ready for actor in self._workers):
            if time.monotonic() >= patience:
                patience = math.inf
                if short := self._shortage():
                    warnings.warn(f"waiting for room on Ray: {short}", RuntimeWarning, stacklevel=3)
            self._turn(None if patience == math.inf else patience)

    def _shortage(self) -> str:
        """What Ray has too little of for one more actor at this moment, or nothing."""
        assert self._ray is not None
        free = self._ray.available_resources()
        return ", ".join(f"a worker needs {share:g} {kind}, {free.get(kind, 0):g} free"
                         for kind, share in self._share.items() if share > free.get(kind, 0))

    def _hire(self) -> None:
        assert self._ray is not None
        variables = {**dict.fromkeys(THREAD_VARIABLES, str(self._threads)), "PYTHONPATH": own_paths()}
        remote = self._ray.remote(Runner).options(
            num_cpus=self._share["CPU"], num_gpus=self._share["GPU"], max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": variables})
        handle = remote.remote()
        self._workers.append(_Actor(handle, handle.setup.remote(self._evaluator, self._threads)))

    def _dispatch(self) -> None:
        for actor in self._workers:
            if not self._waiting:
                return
            if actor.call is None:
                actor.job, actor.started = self._waiting.popleft(), time.monotonic()
                actor.call = actor.handle.run.remote(actor.job.to_json())

    def _turn(self, deadline: float | None) -> None:
        assert self._ray is not None
        busy = {actor.call: actor for actor in self._workers if actor.call is not None}
        answered, _ = self._ray.wait(list(busy), num_returns=1, timeout=self._patience(deadline))
        for call in answered:
            self._collect(busy[call])
        for actor, reason in self._overdue():
            self._bury(actor, reason)
        self._dispatch()

    def _patience(self, deadline: float | None) -> float | None:
        moments = self._moments(deadline)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _collect(self, actor: _Actor) -> None:
        """Take an answer: of a set-up, of a job, or of Ray about an actor that is no more."""
        assert self._ray is not None
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(actor.call)
        except errors.RayActorError as error:
            self._bury(actor, f"worker died: {_exit_type(error)}", str(error))
        except errors.RayError as error:
            if actor.job is None:
                raise BodyplanError(f"the evaluator could not be set up in a Ray actor:\n{error}") from None
            self._answer(actor, Failure(str(error).strip().splitlines()[-1], str(error)))
        else:
            if actor.job:
                self._done.append(Outcome.from_json(answer))
            else:
                actor.ready, self._setup_deaths = True, 0
            actor.job = actor.call = None

    def _answer(self, actor: _Actor, failure: Failure) -> None:
        """Fail the job of an actor."""
        assert actor.job is not None
        seconds = time.monotonic() - actor.started
        self._done.append(Outcome(actor.job.id, None, failure, seconds, "ray"))
        actor.job = actor.call = None

    def _bury(self, actor: _Actor, reason: str, report: str = "") -> None:
        """Kill an actor, fail its job, and put a new one in its place."""
        assert self._ray is not None
        self._ray.kill(actor.handle)
        self._workers.remove(actor)
        if actor.job:
            self._answer(actor, Failure(reason, report))
        elif not actor.ready:
            self._setup_deaths += 1
            if self._setup_deaths >= _SETUP_DEATHS:
                raise BodyplanError(f"the evaluator could not be set up in a Ray actor: {reason}\n{report}")
        self._hire()

    def _connection(self) -> contextlib.AbstractContextManager[ModuleType]:
        if self.address:
            return joined_ray(self.address)
        return private_ray(math.ceil(self._wanted * self._share["CPU"]) if self._wanted else available_cpus())

    def _fitting_count(self) -> int:
        """How many actors to start: what was asked for, else as many as the resources hold."""
        assert self._ray is not None
        has = self._ray.cluster_resources()
        fits = {kind: has.get(kind, 0) / share for kind, share in self._share.items() if share}
        if not fits:
            return self._count
        kind = min(fits, key=lambda kind: fits[kind])
        if fits[kind] < 1:
            raise BodyplanError(f"each worker needs {self._share[kind]:g} {kind}: this Ray has "
                                f"{has.get(kind, 0):g}; lower {kind.lower()}s= or join a cluster that has it")
        return self._wanted or int(fits[kind])


def _exit_type(error: Exception) -> str:
    """Ray's word for how a worker ended (SYSTEM_ERROR, NODE_OUT_OF_MEMORY), else its first line."""
    found = re.search(r"Worker exit type: (\w+)", str(error))
    return found[1] if found else str(error).strip().partition("\n")[0]
