"""What travels between a sweep and its workers, and the two protocols on either side.

The life of a candidate: the sweep makes a `Job` (seed included), `Executor.submit` takes it to a worker,
the worker calls `attempt`, which calls `Evaluator.run` and turns whatever happens into an `Outcome`, and
`Executor.next` brings that back. A job never disappears: it comes back with values or with a `Failure`.
Jobs and outcomes cross process boundaries as JSON only, so that every executor returns exactly the same
objects for the same candidate.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from ...registry import Registry, unknown
from ...space.genome import Genome

__all__ = [
    "Evaluator",
    "Executor",
    "Failure",
    "Job",
    "Outcome",
    "attempt",
    "available_cpus",
    "check_count",
    "check_limit",
    "executors",
    "make_executor",
]


@dataclass(frozen=True)
class Job:
    """One evaluation to make.

    Attributes:
        id: unique among the jobs in flight; the sweep uses the trial's number.
        kind: what is asked of the evaluator: "score", "standalone", ...; executors do not look at it.
        genome: the candidate, canonical.
        seed: the seed of everything random in this evaluation. It comes with the job; executors never make
            one.
        fidelity: what the evaluator understands of it (steps, data fraction); JSON-able.
        replicate: the number of the repetition of one candidate at one fidelity.
    """

    id: int
    kind: str
    genome: Genome
    seed: int
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    replicate: int = 0

    def to_json(self) -> dict[str, Any]:
        """The job as JSON; `from_json` gives back an equal one."""
        return {"id": self.id, "kind": self.kind, "genome": self.genome.to_json(), "seed": self.seed,
                "fidelity": dict(self.fidelity), "replicate": self.replicate}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        return cls(**{**body, "genome": Genome.from_json(body["genome"])})


@dataclass(frozen=True)
class Failure:
    """Why a job has no values.

    Attributes:
        reason: one line: "ValueError: ...", "timeout after 30 s", "memory limit: ...", "worker killed by
            SIGSEGV".
        traceback: the stack of the candidate as far as it is known, else an empty string.
    """

    reason: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure an exception stands for, without the frame that caught it."""
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        return cls(reason, "".join(traceback.format_exception(type(error), error, inner)))


@dataclass(frozen=True)
class Outcome:
    """What came of a job: exactly one of `values` and `failure` is not None.

    Attributes:
        id: the job's.
        values: what the evaluator returned, as JSON reads it back (tuples are lists).
        failure: the reason and the traceback.
        seconds: wall time of the evaluation in the worker; for a lost worker, since the job was handed to it.
        worker: who did it, for people: "inline", "local-0", "ray-1@10.0.0.7".
    """

    id: int
    values: dict[str, Any] | None
    failure: Failure | None
    seconds: float
    worker: str

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON; `from_json` gives back an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Outcome:
        """The outcome that `to_json` wrote."""
        failure = body["failure"]
        return cls(**{**body, "failure": failure and Failure(**failure)})


@runtime_checkable
class Evaluator(Protocol):
    """What a candidate is worth. Written by whoever scores; called by the workers of an executor.

    The sweep makes it in its own process and gives it to `Executor.start`, which takes it to every worker
    once, by cloudpickle where the worker is another process (functions and classes of the user's script go
    along by value). On Ray its numpy arrays lie in shared memory and are read-only.
    """

    def setup(self) -> None:
        """Called once per worker process, before any `run`: load data, copy weights, pick the device.

        What it raises stops the sweep: no candidate is to blame for it.
        """

    def run(self, job: Job) -> dict[str, Any]:
        """Called for one job after another, in one thread. What it raises fails that candidate alone.

        Returns a dict that JSON can hold, every number finite:
        `{"objectives": {name: value}, "intervals": {name: [low, high]}, "extra": {...}}`.
        """
        ...


@runtime_checkable
class Executor(Protocol):
    """Takes jobs to workers and brings outcomes back. Used by one thread, the sweep's, as a context manager.

    Called in this order: `start` once; then `submit` and `next` in any order, keeping up to `capacity` jobs
    in flight; `close` once, also after an error. Limits and lost workers are noticed inside `next`.
    """

    @property
    def capacity(self) -> int:
        """How many jobs run at the same time once started; more may be submitted and wait."""
        ...

    def start(self, evaluator: Evaluator) -> None:
        """Bring the workers up; returns when the first of them is set up.

        Raises:
            TypeError: if the evaluator does not pickle.
            BodyplanError: if a worker cannot be set up (with its traceback) or the workers cannot be reached.
        """

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once."""

    def next(self, timeout: float | None = None) -> Outcome:
        """Wait for the next outcome, in order of completion.

        Raises:
            TimeoutError: after `timeout` seconds without an outcome; nothing is lost by it.
            BodyplanError: if no job is in flight, or if no worker can be set up any more.
        """
        ...

    def close(self) -> None:
        """Stop the workers, running jobs included. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def attempt(evaluator: Evaluator, job: Job, worker: str) -> Outcome:
    """The trial boundary: run one job and answer with an outcome, whatever the candidate does.

    `sys.exit` in a candidate is a failure like any other; Ctrl-C is not the candidate's and passes through.
    """
    started = time.perf_counter()
    values, failure = None, None
    try:
        values = _as_json(evaluator.run(job))
    except (Exception, SystemExit) as error:
        failure = Failure.of(error)
    return Outcome(job.id, values, failure, time.perf_counter() - started, worker)


def _as_json(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TypeError(f"an evaluator returns a dict: got {type(values).__name__}")
    if flaw := _flaw(values, ""):
        raise ValueError(flaw)
    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied


def _flaw(value: Any, where: str) -> str | None:
    """The first place in `value` that JSON cannot hold, or None."""
    if value is None or isinstance(value, (str, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} is {value}; numbers must be finite"
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"{where or 'the result'} has the key {odd[0]!r}; JSON keys are strings"
        parts = ((item, f"{where}.{key}".lstrip(".")) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((item, f"{where}[{index}]") for index, item in enumerate(value))
    else:
        return f"{where} is a {type(value).__name__}; JSON holds numbers, strings, lists and dicts"
    return next((flaw for item, place in parts if (flaw := _flaw(item, place))), None)


executors: Registry[Callable[..., Executor]] = Registry("executor")
executors.register("inline", f"{__package__}.inline:InlineExecutor")
executors.register("local", f"{__package__}.local:LocalExecutor")
executors.register("ray", f"{__package__}.ray:RayExecutor")


def make_executor(spec: str | Executor, **options: Any) -> Executor:
    """The executor called `spec`, built with `options`; an `Executor` is returned as it is.

    Raises:
        ValueError: for a name nobody registered, or an option out of its range.
        TypeError: for an option this executor does not have, or options beside a ready executor.
    """
    if not isinstance(spec, str):
        if not isinstance(spec, Executor):
            raise TypeError(f"executor is a name or an Executor: got {type(spec).__name__}; "
                            f"names: {', '.join(executors.names())}")
        if options:
            raise TypeError(f"options go with the name of an executor: got {', '.join(options)} beside "
                            f"a ready {type(spec).__name__}; give them to its constructor")
        return spec
    target = executors.get(spec)
    known = inspect.signature(target).parameters
    for option in options:
        if option not in known:
            raise TypeError(unknown(f"option of executor {spec!r}", option, known))
    return target(**options)


def available_cpus() -> int:
    """The CPUs this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_count(name: str, value: int) -> int:
    """`value`, or ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1: got {value!r}")
    return value


def check_limit(name: str, value: float | None, unit: str) -> float | None:
    """`value`, or ValueError unless it is None or a positive number."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be positive or None: got {value!r} {unit}; None means no limit")
    return value
