"""Making the architectures and modules of a sweep's candidates again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BodyplanError
from .journal import Trial

if TYPE_CHECKING:
    from torch import nn

    from ..evaluators.tasks.base import Task
    from ..space.architecture import Architecture
    from ..space.elastic.supernet import Supernet
    from ..space.space import Space
    from .sweep import Sweep

__all__ = ["SUPERNET_FILE", "WEIGHTS_FOLDER", "SweepOrigin"]

SUPERNET_FILE = "supernet.safetensors"
WEIGHTS_FOLDER = "weights"


@dataclass(frozen=True)
class SweepOrigin:
    """Where a front's points come from: the space, and the weights in the sweep's directory."""

    space: Space
    directory: Path
    uses_supernet: bool
    trains: bool
    task: Task | None = None
    steps: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    auxiliary: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, sweep: Sweep) -> SweepOrigin:
        return cls(sweep.space, sweep.directory, sweep.supernet, sweep.trains, sweep.task, sweep.steps, sweep.device,
                   sweep.dtype, sweep.auxiliary)

    def architecture(self, trial: Trial) -> Architecture:
        return self.space.architecture(trial.genome)

    def module(self, trial: Trial, weights: Literal["judged", "standalone"] = "judged") -> nn.Module:
        """See `Point.module`."""
        if weights not in ("judged", "standalone"):
            raise ValueError(f"weights is 'judged' or 'standalone': got {weights!r}")
        architecture, own = self.architecture(trial), self.directory / WEIGHTS_FOLDER / f"{trial.hash}.safetensors"
        if weights == "standalone":
            return _load(architecture, own, trial.number)
        if self.uses_supernet:
            return self._calibrated(self._supernet.extract(architecture), trial)
        if self.trains and own.is_file():
            return _load(architecture, own, trial.number)
        return self._made_again(architecture, trial)

    def _calibrated(self, module: nn.Module, trial: Trial) -> nn.Module:
        """With the batch statistics that the worker who judged it measured."""
        from ..evaluators.calibration import calibrate, has_statistics

        if not has_statistics(module):
            return module.eval()
        if self.task is None:
            raise BodyplanError(f"the batch statistics of trial {trial.number} are measured on its task: get the front from "
                                "the sweep's own file, with Sweep(...).front() or run(resume=True)")
        return calibrate(module, self.task, dtype=self.dtype)

    def _made_again(self, architecture: Architecture, trial: Trial) -> nn.Module:
        """The module a worker judged, from its seed; trained as it was trained then."""
        if "parent" in trial.extra:
            raise BodyplanError(f"trial {trial.number} began with the weights of trial {trial.extra['parent']}, and its own "
                                "are missing: restore the directory's weights")
        module = architecture.build(seed=trial.seed or 0)
        if self.trains:
            if self.task is None or self.steps is None:
                raise BodyplanError(f"the weights of trial {trial.number} were not kept, and only its task can train "
                                    "them again: get the front from the sweep's own file, with "
                                    "Sweep(...).front() or run(resume=True)")
            from ..evaluators.devices import on_threads
            from ..evaluators.training import held_auxiliary, train

            with on_threads(1):
                train(module, self.task, self.steps, seed=trial.seed or 0, device=self.device, dtype=self.dtype,
                      auxiliary=held_auxiliary(module, self.auxiliary))
        return module.cpu().eval()

    @cached_property
    def _supernet(self) -> Supernet:
        from ..space.elastic.supernet import Supernet

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
