"""One candidate in, its numbers out: what the workers of a sweep run."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .calibration import calibrate
from .devices import check_device, on_threads
from .objectives import Estimate, HeldOutMetric, Objective, resolve
from .precision import check_dtype, check_precision
from .predictors.deciding import place
from .subject import Subject
from .training import held_auxiliary, train

if TYPE_CHECKING:
    from ..space.architecture import Architecture
    from ..space.elastic.supernet import Supernet
    from ..space.genome import Genome
    from ..space.model import SequenceModel
    from ..space.space import Space
    from .tasks.base import Task

__all__ = ["Evaluator", "evaluate_model"]

Weights = Mapping[str, NDArray[Any]] | str | os.PathLike[str]


class Job(Protocol):
    """What is read of a job; searches have their own class of this shape."""

    @property
    def kind(self) -> str: ...
    @property
    def genome(self) -> Genome: ...
    @property
    def seed(self) -> int: ...
    @property
    def fidelity(self) -> Mapping[str, Any]: ...


class Evaluator:
    """Judges candidates of one space: made by the sweep, sent to workers by cloudpickle, set up there once.

    Kinds of job, and what each answers under "objectives":

        score       every objective. The module is extracted from the supernet where there are weights, its batch
                    statistics measured anew on training data; else trained alone from `job.seed` for
                    `fidelity["steps"]`, starting from the weights of `fidelity["parent"]` if it names one; else,
                    without steps or task, built untrained. With `fidelity["surrogate"]`, {"guesses": (value, low, high)
                    by objective, "front": as `predictors.deciding.place` takes it}, the guessed ones are evaluated only
                    where that leaves the candidate's place open; "extra" says which were "predicted", and the "guesses"
                    that were put to the test.
        measure     the objectives that `fidelity["measure"]` names, of the module that "score" would judge.
        standalone  {"loss": validation metric} after training alone from `job.seed` for `fidelity["steps"]`;
                    "extra" holds the test metric too.
        test        {"loss": test metric} of the module that "score" would judge, or of the weights in the file
                    `fidelity["trained"]`.

    Every answer has "objectives", "intervals" ([low, high] of those that estimate) and "extra". Numbers are
    given as they are, NaN and infinities included: that a candidate with such a number has failed is for the
    caller to say.

    Args:
        weights: the supernet's weights as arrays by address, or the path of a safetensors file each worker
            can read.
        threads: torch threads of an evaluation.
        lr: peak learning rate of standalone training.
        device: where modules are trained and judged; it must be there in the worker.
        dtype: what trainings and scores on the task compute in, "float32", or "bfloat16" or "float16" under autocast;
            weights are kept in float32, and objectives of the user's own get modules as they are.
        auxiliary: losses beside the task's of standalone training, where a module has layers for them; see `train`.
    """

    def __init__(self, space: Space, task: Task | None, objectives: Sequence[str | Objective],
                 weights: Weights | None = None, threads: int = 1, lr: float = 3e-3, device: str = "cpu",
                 dtype: str = "float32", auxiliary: Mapping[str, float] | None = None):
        self.space, self.task = space, task
        self.device, self.dtype = device, check_dtype(dtype)
        self.objectives = tuple(_in_precision(resolve(item, task), self.dtype) for item in objectives)
        self.weights, self.threads, self.lr = weights, threads, lr
        self.auxiliary = dict(auxiliary or {})
        self._net: Supernet | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_net": None}

    def setup(self) -> None:
        """Build the supernet and read the task's data. What it raises is no candidate's fault.

        Raises ValueError where the device is not there, or does not compute in the type.
        """
        device = check_device(self.device)
        check_precision(device, self.dtype)
        if self.weights is not None:
            self._net = _supernet(self.space, self.weights).to(device)
        if self.task is not None:
            self.task.batch("train", 0, 0)

    def run(self, job: Job) -> dict[str, Any]:
        """Evaluate one candidate. Raises ValueError for a kind or a fidelity it does not know."""
        kinds: dict[str, Callable[[Job, Architecture], dict[str, Any]]] = {
            "score": self._score, "measure": self._measure, "standalone": self._standalone, "test": self._test}
        if job.kind not in kinds:
            raise ValueError(f"kind of a job must be one of {', '.join(kinds)}: got {job.kind!r}")
        architecture = self.space.architecture(job.genome)
        with _seeded(job.seed), on_threads(self.threads):
            answer = kinds[job.kind](job, architecture)
        return {"intervals": {}, **answer, "extra": {**_sizes(architecture), **answer.get("extra", {})}}

    def _score(self, job: Job, architecture: Architecture) -> dict[str, Any]:
        surrogate = job.fidelity.get("surrogate") or {"guesses": {}, "front": []}
        left = dict(surrogate["guesses"])
        subject = Subject(architecture, lambda: self._module(job, architecture))
        for objective in self.objectives:
            if objective.name not in left:
                subject.judge(objective)
        for objective in self.objectives:
            if objective.name in left and place(subject.values, left, self.objectives, surrogate["front"]) == "open":
                del left[objective.name]
                subject.judge(objective)
        for name, (value, low, high) in left.items():
            subject.take(name, Estimate(value, low, high, "predicted, not measured"))
        answer = subject.answer([objective.name for objective in self.objectives])
        if left:
            answer["extra"]["predicted"] = sorted(left)
        if tested := {name: guess for name, guess in surrogate["guesses"].items() if name not in left}:
            answer["extra"]["guesses"] = tested
        if "parent" in job.fidelity:
            answer["extra"]["parent"] = job.fidelity["parent"]["number"]
        return answer

    def _measure(self, job: Job, architecture: Architecture) -> dict[str, Any]:
        subject = Subject(architecture, lambda: self._module(job, architecture))
        names = list(job.fidelity["measure"])
        for objective in self.objectives:
            if objective.name in names:
                subject.judge(objective)
        return subject.answer(names)

    def _standalone(self, job: Job, architecture: Architecture) -> dict[str, Any]:
        task = self._needed_task(job)
        started = time.perf_counter()
        module, record = self._trained(job, architecture, task)
        seconds = time.perf_counter() - started
        found = evaluate_model(task, module, self.dtype)
        return {"objectives": {"loss": found["validation"]},
                "extra": {**found, "steps": record.steps, "train_seconds": seconds, "train_loss": record.losses[-1]}}

    def _test(self, job: Job, architecture: Architecture) -> dict[str, Any]:
        task = self._needed_task(job)
        value = HeldOutMetric(task, "test", self.dtype)(architecture, self._module(job, architecture))
        return {"objectives": {"loss": value}, "extra": {"test": value}}

    def _module(self, job: Job, architecture: Architecture) -> nn.Module:
        """The candidate's own packed copy, in evaluation mode."""
        if self.weights is not None:
            if self._net is None:
                self.setup()
            assert self._net is not None
            extracted: nn.Module = self._net.extract(architecture)
            return extracted.eval() if self.task is None else calibrate(extracted, self.task, dtype=self.dtype)
        if "trained" in job.fidelity:
            return _loaded(architecture, job.fidelity["trained"]).to(check_device(self.device)).eval()
        if self.task is not None and job.fidelity.get("steps"):
            return self._trained(job, architecture, self.task)[0]
        return architecture.build(seed=job.seed, device=check_device(self.device)).eval()

    def _trained(self, job: Job, architecture: Architecture, task: Task) -> tuple[nn.Module, Any]:
        """Trained alone; the weights go to the file that `fidelity["save"]` names, if it names one."""
        steps = job.fidelity.get("steps")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f'fidelity["steps"] of standalone training is a whole number of at least 1: got {steps!r}')
        module = self._start(job, architecture)
        record = train(module, task, steps, lr=self.lr, seed=job.seed, device=self.device, dtype=self.dtype,
                       auxiliary=held_auxiliary(module, self.auxiliary))
        if "save" in job.fidelity:
            _save(module, architecture, Path(job.fidelity["save"]))
        return module.eval(), record

    def _start(self, job: Job, architecture: Architecture) -> nn.Module:
        """The module before its training: drawn from the seed, or with what it inherits from its parent."""
        if "parent" not in job.fidelity:
            return architecture.build(seed=job.seed)
        from ..space.conversions import inherited
        from ..space.genome import Genome

        parent = job.fidelity["parent"]
        model = _loaded(self.space.architecture(Genome.from_json(parent["genome"])), parent["weights"])
        return inherited(model, architecture, seed=job.seed)

    def _needed_task(self, job: Job) -> Task:
        if self.task is None:
            raise ValueError(f"a job of kind {job.kind!r} trains or tests on a task: this evaluator has none")
        return self.task


def evaluate_model(task: Task, model: nn.Module, dtype: str | None = None) -> dict[str, float]:
    """The task's metric of `model` on both held-out splits: {"validation": ..., "test": ...}."""
    mixed: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    return {split: task.score(model, split, **mixed) for split in ("validation", "test")}


def _in_precision(objective: Objective, dtype: str | None) -> Objective:
    """The objective, computed in a short type if it is the metric of a task."""
    if dtype is None or not isinstance(objective.evaluate, HeldOutMetric):
        return objective
    return replace(objective, evaluate=replace(objective.evaluate, dtype=dtype))


def _sizes(architecture: Architecture) -> dict[str, Any]:
    """What every view shows beside the objectives; 256 tokens, as in the objectives of these names."""
    cost = architecture.cost(256)
    return {"parameters": cost.parameters, "macs": cost.macs, "state_bytes": cost.state_bytes}


def _supernet(space: Space, weights: Weights) -> Supernet:
    from ..space.elastic.supernet import Supernet

    if not isinstance(weights, Mapping):
        return Supernet.load(space, weights)
    net = Supernet(space)
    net.load_numpy(weights)
    return net


def _loaded(architecture: Architecture, path: str) -> SequenceModel:
    """The module with the weights that a training left."""
    from safetensors.torch import load_file

    model = architecture.build()
    model.load_state_dict(load_file(path), strict=True)
    return model


def _save(module: nn.Module, architecture: Architecture, path: Path) -> None:
    """The weights of a trained module under their names; appears by rename."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    tensors = {name: parameter.detach().contiguous() for name, parameter in module.named_parameters()}
    save_file(tensors, str(partial), metadata={"format": "pt", "architecture": architecture.hash})
    os.replace(partial, path)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what a user's objective may draw from, and give the process its own randomness back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed & 0xFFFF_FFFF)
        if torch.cuda.is_initialized():                                 # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
        torch.default_generator.manual_seed(seed)     # torch.manual_seed visits every backend: 0.3 ms a candidate
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
