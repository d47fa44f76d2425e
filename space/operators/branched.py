"""An operator that trains as several side by side, and becomes one.

Legend: B batch, T tokens, D width, N branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..axes import Param, axis, param
from ..operator import Source
from .attention import Attention
from .checks import require_whole
from .spectral import SpectralStepping
from .wrapped import Wrapped

__all__ = ["Branched", "BranchedOperator"]

LAST = ("out", "down")          # what operators call the matrix that is their last step


class BranchedOperator(nn.Module):
    """The sum of N operators; `share` of every weight but the last matrices' is the mean over the branches.

    `trained` counts training steps, in place: the share is 0 for the first `warmup`, and 1 after `steps` more. Then all
    branches give their last matrices the same, so that these may be added up and one operator is left.
    """

    def __init__(self, branches: list[nn.Module], names: list[str], last: list[str], steps: int, warmup: int):
        super().__init__()
        self.branches: Any = nn.ModuleList(branches)
        self.names, self.last, self.steps, self.warmup = names, last, steps, warmup
        self.trained = nn.Parameter(torch.zeros(1), requires_grad=False)

    def share(self) -> Tensor:
        """Of the mean over the branches in their weights."""
        return ((self.trained.detach() - self.warmup).clamp(min=0) / self.steps).clamp(max=1)

    def weights(self, prefix: str) -> list[dict[str, Tensor]]:
        """Every branch's weights as they run, by name behind a prefix."""
        share = self.share()
        found: list[dict[str, Tensor]] = [{} for _ in self.branches]
        for name in self.names:
            path, _, key = name.rpartition(".")
            each = [getattr(branch.get_submodule(path), key) for branch in self.branches]   # what stands there may be a view
            if name not in self.last:
                mean = torch.stack(each).mean(0)
                each = [torch.lerp(weight, mean, share.to(weight.dtype)) for weight in each]
            for weights, weight in zip(found, each, strict=True):
                weights[prefix + name] = weight
        return found

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = self.summed(x_BTD)
        if self.training:
            self.trained.detach().add_(1)
        return y_BTD

    def summed(self, x_BTD: Tensor) -> Tensor:
        """What all branches give."""
        outputs = [functional_call(branch, weights, (x_BTD,))
                   for branch, weights in zip(self.branches, self.weights(""), strict=True)]
        return torch.stack(outputs).sum(0)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i, branch in enumerate(self.branches):
            state = branch.init_state(batch, dtype=dtype, device=device) if hasattr(branch, "init_state") else {}
            found |= {f"{i}.{name}": value for name, value in state.items()}
        return found

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, every branch with a state of its own; without states each token works alone."""
        if not hasattr(self.branches[0], "step"):
            return self.summed(x_BTD), {} if state is None else state
        outputs: list[Tensor] = []
        after: dict[str, Any] = {}
        for i, (branch, weights) in enumerate(zip(self.branches, self.weights("op."), strict=True)):
            start = f"{i}."
            own = None if state is None else {name.removeprefix(start): value for name, value in state.items()
                                              if name.startswith(start)}
            y_BTD, new = functional_call(SpectralStepping(branch), weights, (x_BTD, own))
            outputs.append(y_BTD)
            after |= {f"{start}{name}": value for name, value in new.items()}
        return torch.stack(outputs).sum(0), after


@dataclass(frozen=True)
class Branched(Wrapped):
    """Rethinking Vision Transformer Depth via Structural Reparameterization: few layers of several branches, which become
    few plain layers.

    op: an operator whose last step is a matrix called out or down: `Attention`, `MLP`, `SwiGLU` and others, numbers of which
    may be choices. branches: how many of it run side by side while training. They are joined step by step where their
    nonlinearities begin: over `steps` training steps, after `warmup`, everything before the last matrices moves to the mean
    over the branches (the reading taken here, of queries, keys and values as of hidden layers). In the end `folded` makes
    one operator of the means and of the sum of the last matrices, which computes the same.

    Costs are those of all branches, and the folded operator has those of one; mixing the weights is not counted.
    """

    op: Any = field(default_factory=Attention)
    branches: Any = 2
    steps: Any = 10_000
    warmup: Any = 0
    fixed_axes: ClassVar[Mapping[str, str]] = {"one": "a number of its own"}
    proof: ClassVar[str] = "tests/space/operators/test_branched.py -k branches"
    source: ClassVar[Source] = Source("Rethinking Vision Transformer Depth via Structural Reparameterization", 2025,
                                      systems=("S036",))

    @property
    def fixed(self) -> Mapping[str, str]:                                            # type: ignore[override]
        return {**super().fixed, **self.fixed_axes}

    def check(self, width: int, where: str) -> None:
        self.check_inside(width, where, ("mixer", "channel"))
        require_whole("branches", self.branches, where)
        require_whole("steps", self.steps, where)
        require_whole("warmup", self.warmup, where, low=0)
        if not self.last(width) or any(declared.statistic for declared in self.op.axes(width).values()):
            raise ValueError(f"branches are added up in a last matrix called {' or '.join(LAST)} at {where}: got "
                             f"{self.op!r}; use Attention, MLP or SwiGLU")

    def last(self, width: int) -> list[str]:
        """The names of the operator's parameters that are its last step."""
        return [name for name in self.op.axes(width) if name.removesuffix(".weight").removesuffix(".bias") in LAST]

    def axes(self, width: int) -> dict[str, Param]:
        found: dict[str, Param] = {}
        last = self.last(width)
        for name, declared in self.op.axes(width).items():
            if name in last:                                                          # of a sum as large as one
                declared = replace(declared, init=replace(declared.init, gain=declared.init.gain / math.sqrt(self.branches)))
            found |= {f"branches.{i}.{name}": declared for i in range(self.branches)}
        return {**found, "trained": param(axis("one", 1), share="own", init="zeros", statistic=True)}

    def build(self, width: int) -> nn.Module:
        branches = [self.op.build(width) for _ in range(self.branches)]
        return BranchedOperator(branches, list(self.op.axes(width)), self.last(width), self.steps, self.warmup)

    def macs(self, width: int, length: int) -> float:
        return float(self.branches * super().macs(width, length))

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.branches * super().decode_macs(width, length))

    def state_numel(self, width: int, length: int) -> int:
        return int(self.branches * super().state_numel(width, length))
