"""A sweep as JSON: the journal's first event, everything a view needs, and what a resume is compared with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..errors import BodyplanError
from ..space.counting.counting import NotCountable
from .front import Criterion
from .placement import DEFAULTS, told
from .strategies.base import describe
from .surrogates import described

if TYPE_CHECKING:
    from ..space.space import Space
    from .journal import Journal
    from .sweep import Sweep

__all__ = ["check_same", "definition", "space_size"]

_PACKAGES = ("bodyplan", "torch", "numpy", "optuna", "ray", "mlflow", "moocore")
_SAME = {  # what may not change between a sweep and its resume, and what people call it
    "space_hash": "space", "objectives": "objectives", "task": "task", "strategy": "strategy", "seed": "seed",
    "supernet": "supernet", "supernet_steps": "supernet_steps", "supernet_strategy": "supernet_strategy",
    "supernet_workers": "supernet_workers", "device": "device", "dtype": "dtype",
    "steps": "steps", "inherit": "inherit", "auxiliary": "auxiliary", "order": "order", "in_flight": "in_flight",
    "initial": "initial",
}


def definition(sweep: Sweep) -> dict[str, Any]:
    """The body of a journal's "sweep" event."""
    return {
        "schema_version": 1,
        "name": sweep.directory.name,
        "space": sweep.space.to_json(), "space_hash": sweep.space.hash, "space_size": space_size(sweep.space),
        "num_genes": len(sweep.space.genes),
        "task": _task(sweep.task),
        "objectives": [asdict(Criterion.of(objective)) for objective in sweep.objectives],
        "strategy": describe(sweep.strategy), "seed": sweep.seed,
        "trials": sweep.trials, "hours": sweep.hours, "twin": sweep.twin,
        "supernet": sweep.supernet, "supernet_steps": sweep.supernet_steps if sweep.supernet else None,
        "supernet_strategy": sweep.supernet_label or None,
        "steps": sweep.steps if sweep.trains else None,
        "retrain": sweep.retrain, "fidelity_sample": sweep.fidelity_sample, "fidelity": sweep.fidelity,
        "executor": sweep.executor_name, "workers": sweep.workers, "order": sweep.order,
        "in_flight": sweep.in_flight, "initial": [genome.to_json() for genome in sweep.initial],
        **told(sweep), "predictor": described(sweep.predictor),
        "source": sweep.source, "versions": _versions(), "platform": platform.platform(),
    }


def check_same(journal: Journal, sweep: Sweep) -> None:
    """Raise BodyplanError when the journal is of another sweep; the budget and the executor may change."""
    before, now = journal.definition, definition(sweep)
    for key, word in _SAME.items():
        then, given = (body.get(key, DEFAULTS.get(key)) for body in (before, now))
        if then != given:
            raise BodyplanError(
                f"a resume continues the sweep it finds: {journal.directory} was started with another {word} "
                f"({_short(then)}, now {_short(given)}); give the {word} it was started with, or "
                "choose another directory")


def space_size(space: Space) -> str | None:
    """The exact number of genomes as text (it may exceed what JSON readers hold), None when it is not countable."""
    try:
        return str(space.size())
    except NotCountable:
        return None


def _task(task: Any) -> dict[str, Any] | None:
    if task is None:
        return None
    return {"name": task.name, "description": task.describe(), "fingerprint": task.fingerprint,
            "metric": task.metric, "unit": task.unit, "goal": task.goal}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = ", ".join(f"{item['name']} {item['goal']} {item['bound'] or ''}".strip() for item in value)
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
