"""What a sweep's definition is checked for before any work starts: the rule, what was got, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluators.objectives import HeldOutMetric, Objective, resolve
from ..registry import unknown
from ..space.architecture import Architecture
from ..space.genome import Genome
from ..space.space import Space
from .executors.base import Executor, executors
from .journal import FILE_NAME

if TYPE_CHECKING:
    from ..evaluators.tasks.base import Task

__all__ = ["ORDERS", "check_budget", "check_count", "check_directory", "check_executor", "check_inherit", "check_positive",
           "check_sample", "check_space", "check_task", "check_tracking", "check_training", "check_training_strategy",
           "resolve_initial", "resolve_objectives", "resolve_reference"]

ORDERS = ("ask", "completion")


def check_space(space: Any) -> Space:
    """The space itself. Raises TypeError for anything else."""
    if not isinstance(space, Space):
        raise TypeError(f"a sweep searches a Space: got {type(space).__name__}; build one with Space(embed=..., "
                        "width=..., body=..., head=...)")
    return space


def resolve_objectives(items: Any, task: Task | None) -> tuple[Objective, ...]:
    """Objectives from names and objects, bound to the task."""
    if isinstance(items, (str, Objective)) or not isinstance(items, Sequence):
        raise TypeError(f"objectives is a list of names and Objectives: got {items!r}; write [{items!r}]")
    if not items:
        raise ValueError('a sweep needs at least one objective: got none; for example ["loss", "parameters"]')
    found = tuple(resolve(item, task) for item in items)
    names = [objective.name for objective in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"objective names are unique: {twice[0]!r} stands twice; rename one of them")
    for objective in found:
        if isinstance(objective.evaluate, HeldOutMetric) and objective.evaluate.task is None:
            raise ValueError(f"the objective {objective.name!r} is the metric of a task: this sweep has none; give "
                             "task=, for example tasks.text()")
    return found


def check_task(task: Any, space: Space) -> None:
    """Raise unless the task is one and fits the embedding and the head of the space."""
    if task is None:
        return
    missing = [name for name in ("batch", "loss", "score", "check") if not callable(getattr(task, name, None))]
    if missing:
        raise TypeError(f"task is a Task or None: got {task!r}, which has no {missing[0]}(); for example "
                        "tasks.text()")
    task.check(space)


def check_budget(trials: Any, hours: Any) -> None:
    """Raise unless at least one limit is given and each is positive."""
    if trials is None and hours is None:
        raise ValueError("a sweep needs a budget: got neither trials nor hours; give trials=200 or hours=2")
    if trials is not None:
        check_count("trials", trials)
    if hours is not None:
        check_positive("hours", hours)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}: got {value!r}")


def check_sample(candidates: Any, steps: Any, seeds: Any) -> None:
    """Raise unless these say how to measure fidelity: at least three candidates and a step, one or two seeds."""
    for name, value, least in (("candidates", candidates, 3), ("steps", steps, 1)):
        if value is not None:
            check_count(name, value, least)
    if seeds not in (1, 2) or isinstance(seeds, bool):
        raise ValueError(f"seeds is 1, or 2 to measure the ceiling: got {seeds!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a number above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{name} must be a number above 0: got {value!r}")


def check_executor(executor: Any, workers: Any, timeout: Any, memory_gb: Any, address: Any = None) -> None:
    """Raise for an unknown name, for anything that is no executor, and for settings an executor does not have."""
    if workers is not None:
        check_count("workers", workers)
    if address is not None and executor != "ray":
        raise ValueError(f"address is that of a Ray cluster: got {address!r} with the executor {executor!r}; use "
                         "executor='ray'")
    limits = {"timeout": timeout, "memory_gb": memory_gb}
    for name, limit in limits.items():
        if limit is not None:
            check_positive(name, limit)
    given = [name for name, value in {"workers": workers, **limits}.items() if value is not None]
    if not isinstance(executor, str):
        if not isinstance(executor, Executor):
            raise TypeError(f"executor is a name or an Executor: got {executor!r}; names: "
                            f"{', '.join(executors.names())}")
        if given:
            raise ValueError(f"{given[0]} goes with the name of an executor: got it beside a ready "
                             f"{type(executor).__name__}; give it to its constructor")
    elif executor not in executors.names():
        raise ValueError(unknown("executor", executor, executors.names()))
    elif executor == "inline" and given:
        raise ValueError(f"{given[0]} needs processes of their own: executor 'inline' runs candidates in this one; use "
                         "executor='local'")
    elif executor == "ray" and memory_gb is not None:
        raise ValueError("memory_gb is a limit of executor 'local': got it with 'ray'; leave it out")


def check_training(supernet: bool, trains: bool, task: Task | None, twin: bool) -> None:
    """Raise for a supernet without anything to train it on, and for a twin that would train every candidate twice."""
    if supernet and task is None:
        raise ValueError("a supernet is trained on a task: this sweep has none; give task=, for example tasks.text()")
    if twin and trains and not supernet:
        raise ValueError("twin=True doubles the evaluations, affordable where candidates share trained weights or "
                         "need none: here every candidate is trained alone; give supernet=True, or leave twin out")


def check_inherit(inherit: bool, supernet: bool, trains: bool) -> None:
    """Raise where candidates are to start from one another's weights and have none of their own."""
    if inherit and (supernet or not trains):
        got = "shared weights, supernet=True" if supernet else "no training"
        raise ValueError(f"inherit=True is for candidates that are trained one by one: got {got}; give a task and an "
                         "objective that needs a trained model, or leave inherit out")


def check_auxiliary(auxiliary: Mapping[str, float] | None, space: Space, trains: bool) -> dict[str, float]:
    """The losses beside the task's by name; raises where there is no training, or nothing in the space that has them."""
    if not auxiliary:
        return {}
    if not trains:
        raise ValueError(f"auxiliary losses are for trainings: got {', '.join(map(repr, auxiliary))} in a sweep without any; "
                         "leave them out")
    from ..evaluators.auxiliary import check_auxiliary as checked

    return checked(space, auxiliary)


def check_training_strategy(strategy: Any) -> str:
    """What a way to train a supernet is called; raises for one that nobody registered."""
    from ..evaluators.strategies import resolve

    return resolve(strategy).label


def check_tracking(tracking: Any) -> None:
    """Raise for anything but a bool or a URI, and for a tracking server that does not answer."""
    if not isinstance(tracking, (bool, str)):
        raise TypeError(f"tracking is True, False or a tracking URI: got {tracking!r}")
    if tracking:
        from .tracking import check_tracking as check

        check(None if tracking is True else tracking)


def resolve_initial(initial: Any, space: Space) -> tuple[Genome, ...]:
    """Canonical genomes of the architectures to begin with."""
    if isinstance(initial, (Architecture, Genome)) or not isinstance(initial, Sequence):
        raise TypeError(f"initial is a list of architectures: got {initial!r}; write initial=[architecture]")
    return tuple(_initial(item, space, f"initial[{index}]") for index, item in enumerate(initial))


def _initial(item: Any, space: Space, where: str) -> Genome:
    if isinstance(item, Architecture):
        if item.space.hash != space.hash:
            raise ValueError(f"initial architectures are of the sweep's space at {where}: got one of space "
                             f"{item.space.hash[:8]}, the sweep's is {space.hash[:8]}; build it with "
                             "space.architecture(genome) of this space")
        return item.genome
    if isinstance(item, Genome):
        try:
            space.validate(item)
        except ValueError as error:
            raise ValueError(f"{error} (at {where})") from error
        return space.canonical(item)
    raise TypeError(f"initial holds architectures and genomes at {where}: got {type(item).__name__}")


def resolve_reference(reference: Any, objectives: Sequence[Objective]) -> list[float | None]:
    """The declared part of the reference point, in the order of the objectives; None where it is to be probed."""
    declared = {objective.name: objective.reference for objective in objectives}
    if isinstance(reference, Mapping):
        for name in reference:
            if name not in declared:
                raise ValueError(unknown("objective in reference", name, declared))
        declared |= reference
    elif reference is not None:
        if len(reference) != len(declared):
            raise ValueError(f"reference has one number per objective: got {len(reference)} for {len(declared)}")
        declared = dict(zip(declared, reference, strict=True))
    for name, value in declared.items():
        if value is not None and (not isinstance(value, (int, float)) or value != value):
            raise ValueError(f"reference is a number at objective {name!r}: got {value!r}")
    return [None if value is None else float(value) for value in declared.values()]


def check_directory(directory: Path) -> None:
    """Raise for a place that neither is free nor holds a sweep."""
    if directory.is_file():
        raise ValueError(f"directory must not be a file: got {directory}; choose another directory")
    if directory.is_dir() and not (directory / FILE_NAME).exists() and any(directory.iterdir()):
        raise ValueError(f"a sweep needs a directory of its own: {directory} holds other files; choose another one")
