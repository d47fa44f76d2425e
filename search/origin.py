"""Making the architectures and modules of a sweep's candidates again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BodyplanError
from .journal import Trial

if TYPE_CHECKING:
    from torch import nn

    from ..evaluators.tasks.base import Task
    from ..space.architecture import Architecture
    from ..space.space import Space
    from ..space.supernet import Supernet
    from .sweep import Sweep

__all__ = ["SUPERNET_FILE", "WEIGHTS_FOLDER", "SweepOrigin"]

SUPERNET_FILE = "supernet.safetensors"
WEIGHTS_FOLDER = "weights"


@dataclass(frozen=True)
class SweepOrigin:
    """Where a front's points come from: the space, and the weights in the sweep's directory."""

    space: Space
    directory: Path
    task: Task | None
    uses_supernet: bool
    steps: int | None

    @classmethod
    def of(cls, sweep: Sweep) -> SweepOrigin:
        return cls(sweep.space, sweep.directory, sweep.task, sweep.supernet, sweep.steps if sweep.trains else None)

    def architecture(self, trial: Trial) -> Architecture:
        return self.space.architecture(trial.genome)

    def module(self, trial: Trial, weights: Literal["judged", "standalone"] = "judged") -> nn.Module:
        """See `Point.module`."""
        if weights not in ("judged", "standalone"):
            raise ValueError(f"weights is 'judged' or 'standalone': got {weights!r}")
        architecture = self.architecture(trial)
        if weights == "standalone":
            return _load(architecture, self.directory / WEIGHTS_FOLDER / f"{trial.hash}.safetensors", trial.number)
        if self.uses_supernet:
            return self._supernet.extract(architecture).eval()
        return self._own(architecture, trial.seed or 0)

    def _own(self, architecture: Architecture, seed: int) -> nn.Module:
        """The module a worker judged, made again from its seed."""
        from ..evaluators.devices import on_threads
        from ..evaluators.training import train

        module = architecture.build(seed=seed)
        if self.task is not None and self.steps is not None:
            with on_threads(1):
                train(module, self.task, self.steps, seed=seed)
        return module.eval()

    @cached_property
    def _supernet(self) -> Supernet:
        from ..space.supernet import Supernet

        path = self.directory / SUPERNET_FILE
        if not path.is_file():
            raise BodyplanError(f"a candidate of this sweep takes its weights from the supernet: {path} is missing; "
                                "resume the sweep, or restore the file")
        return Supernet.load(self.space, path)


def _load(architecture: Architecture, path: Path, number: int) -> nn.Module:
    from safetensors.torch import load_file

    if not path.is_file():
        raise BodyplanError(f"trial {number} has no weights of its own at {path}: only those retrained at the end of a "
                            "supernet sweep do; take module() instead")
    module = architecture.build()
    module.load_state_dict(load_file(path), strict=True)
    return module.eval()
