"""What a training strategy is, and the names of those there are.

Life of a strategy: it is made in the user's process, as a frozen dataclass of its settings, and sent to workers by
value. The trainer asks it for the visits of every step, runs them in order on one batch, adds their gradients and
moves the weights once. Before every step it may rewrite weights and name a fixed teacher. Everything it answers is
a pure function of the space, the step, the number of steps and the seed (and of the weights, for what it rewrites):
a strategy has no state of its own, so a resumed training visits the same subnets and every worker knows all visits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from ...registry import Registry

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.elastic.supernet import Supernet
    from ...space.space import Space

__all__ = ["StrategyFunction", "TrainingStrategy", "Visit", "resolve", "sampling_strategies"]


@dataclass(frozen=True)
class Visit:
    """One subnet of a step.

    role: "task" learns the task; "teacher" learns the task and leaves its logits to the students after it;
    "student" learns the logits of the step's teacher, else those of the fixed teacher, which carry no gradient.
    hard: a student's loss is its divergence from the teacher plus `hard` times the task's loss. part: (i, n) runs
    on the i-th of n equal parts of the batch's examples, instead of on all of them. rivals: where there are any,
    the trainer runs all of them on the batch without gradient and visits the one with the lowest ("best") or the
    highest ("worst") task loss instead of `architecture`.
    """

    architecture: Architecture | None          # None: the module itself, which is no supernet
    role: Literal["task", "teacher", "student"] = "task"
    hard: float = 0.0
    part: tuple[int, int] | None = None
    rivals: tuple[Architecture, ...] = ()
    pick: Literal["best", "worst"] = "best"


class TrainingStrategy:
    """Base of strategies. A subclass is a frozen dataclass with a `name` and `visits`; the rest is optional."""

    name: ClassVar[str] = ""

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterable[Visit]:
        """The subnets of step number `step`, from 0, of `steps`."""
        raise NotImplementedError(f"{type(self).__name__} must define visits(space, step, steps, seed)")

    def fixed_teacher(self, space: Space | None, step: int, steps: int) -> Architecture | nn.Module | None:
        """Whom students without a teacher in their step learn from.

        A module is taken as it is. An architecture is extracted from the supernet when it is first named, and that
        copy then stays as it is. For a module that is no supernet, `space` is None.
        """
        return None

    def alone(self) -> Visit:
        """What a module that is no supernet learns from: a strategy with a given teacher makes it a student."""
        return Visit(None)

    def rewrite(self, net: Supernet, step: int, steps: int) -> None:
        """Change weights before step number `step`; called once for every step from 0 up to `steps`, the end."""

    @property
    def label(self) -> str:
        """The name, with the settings that are not at their defaults: `sandwich(random=2)`."""
        odd = [f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self)     # type: ignore[arg-type]
               if f.default is MISSING or getattr(self, f.name) != f.default]
        name = self.name or type(self).__name__
        return f"{name}({', '.join(odd)})" if odd else name


@dataclass(frozen=True)
class StrategyFunction(TrainingStrategy):
    """A function of (space, step, steps, seed) that returns visits, as a strategy."""

    function: Callable[[Space, int, int, int], Iterable[Visit]]
    called: str

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterable[Visit]:
        return self.function(space, step, steps, seed)

    @property
    def label(self) -> str:
        return self.called


sampling_strategies: Registry[Any] = Registry("training strategy")
for _name, _target in {
    "single_path": "single_path:SinglePath", "fair": "fair:Fair", "multi_path": "multi_path:MultiPath",
    "sandwich": "sandwich:Sandwich", "attentive": "attentive:Attentive",
    "progressive_shrinking": "shrinking:ProgressiveShrinking", "progressive_depth": "growing:ProgressiveDepth",
    "two_stage": "two_stage:TwoStage", "learngene": "learngene:Learngene",
}.items():
    sampling_strategies.register(_name, f"{__package__}.{_target}")


def resolve(strategy: str | TrainingStrategy | Callable[..., Any]) -> TrainingStrategy:
    """A strategy from its name, from itself, or from a function of (space, step, steps, seed).

    Raises ValueError with the nearest known name, TypeError for other things.
    """
    called = strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "")
    found = sampling_strategies.get(strategy) if isinstance(strategy, str) else strategy
    if isinstance(found, type) and issubclass(found, TrainingStrategy) and isinstance(strategy, str):
        found = found()
    if isinstance(found, TrainingStrategy):
        return found
    if callable(found) and not isinstance(found, type):
        return StrategyFunction(found, called)
    raise TypeError(f"a training strategy is a name, an object such as Sandwich(random=2), or a function of (space, "
                    f"step, steps, seed): got {strategy!r}; names: {', '.join(sampling_strategies.names())}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless a setting is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} of a training strategy is a whole number of at least {least}: got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is a share of the steps."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} of a training strategy is a share of the steps, from 0 to 1: got {value!r}")


def _text(value: Any) -> str:
    """A setting in a label: modules and long records by a fingerprint, strategies by their label."""
    if isinstance(value, TrainingStrategy):
        return value.label
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__} {_fingerprint(value)}>"
    text = repr(value)
    return text if len(text) <= 60 else f"<{hashlib.sha256(text.encode()).hexdigest()[:8]}>"


def _fingerprint(module: nn.Module) -> str:
    """Eight hex digits of the weights, so that a training is not resumed with another teacher."""
    digest = hashlib.sha256()
    parts: Sequence[tuple[str, Any]] = sorted(module.state_dict().items())
    for name, tensor in parts:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
