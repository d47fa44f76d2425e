"""Several processes train one supernet: each visits other subnets of the same step, gradients are summed.

Every rank holds all weights, sees the same batch and, since strategies are pure functions of the step, knows all
visits. They are dealt round-robin over the ranks; each rank adds the gradients of its own; then gradients are
summed over ranks, the masks of what was touched are united, and every rank makes the same move, so that weights
stay equal to the bit on equal machines. A step of n ranks is the step of one rank that makes all visits, up to the
order of a sum.

torch's `DistributedDataParallel` is not used. It expects every rank to run one forward of one wrapped module and
fires a reduction per parameter while the backward of that forward runs. Here a rank runs several subnets per step,
each through `functional_call` on views, ranks touch different parameters (`find_unused_parameters` would follow the
last forward only), a rank may have no visit at all, students need the logits of a teacher that ran elsewhere,
gradients are to be summed and not averaged, and an optimizer that leaves alone what nobody touched needs the united
masks, which DDP does not have. One explicit all-reduce after the visits does all of that; it reduces only
parameters that some rank touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .optim import Touch

__all__ = ["Group", "Share"]

UNTOUCHED, PARTLY, WHOLLY = 0, 1, 2


@dataclass(frozen=True)
class Share:
    """A piece of work: visit number `visit`, on part `part` of `parts` of its examples."""

    visit: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Group:
    """The ranks of one training. `Group()` is one process alone, which exchanges nothing.

    Life: the processes of a training each call `torch.distributed.init_process_group` (gloo on a CPU, nccl on GPUs;
    Ray Train does it for its workers), then `Group.current()`, and hand it to `train`. All call it with the same
    arguments. When one rank raises, the others wait until torch's timeout: whoever started them ends them, as Ray
    Train does.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """The group of torch's default process group, or one process alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def deal(self, visits: int) -> list[Share]:
        """This rank's work in a step of `visits` visits.

        Where there are fewer visits than ranks, visits are cut into as many parts as give every rank the same number.
        """
        parts = 1 if visits >= self.size else self.size // math.gcd(self.size, visits)
        shares = [Share(visit, part, parts) for part in range(parts) for visit in range(visits)]
        if parts == 1:
            return shares[self.rank::self.size]
        each = len(shares) // self.size                 # in a row: the visits of one part have the same teacher
        return shares[self.rank * each:(self.rank + 1) * each]

    def spread(self, value: Any) -> Any:
        """The first rank's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def add(self, numbers: Tensor, device: torch.device) -> Tensor:
        """The sum of a tensor over ranks, exchanged on `device`; NaN where a rank has NaN."""
        if self.size == 1:
            return numbers
        moved = numbers.to(device)
        dist.all_reduce(moved)
        return moved

    def unite(self, parameters: Mapping[str, Tensor], touched: Mapping[str, Touch] | None) -> dict[str, Touch] | None:
        """Leave the sum of all ranks' gradients on the parameters; returns what any rank touched.

        `touched` as for an optimizer's `step`: None stands for every parameter with a gradient, as a whole, and
        comes back.
        """
        if self.size == 1:
            return None if touched is None else dict(touched)
        marks = torch.tensor([_mark(name, p, touched) for name, p in parameters.items()], dtype=torch.uint8)
        marks = marks.to(next(iter(parameters.values())).device)
        dist.all_reduce(marks, dist.ReduceOp.MAX)
        found = dict(zip(parameters, marks.tolist(), strict=True))
        _sum_gradients({name: p for name, p in parameters.items() if found[name] != UNTOUCHED})
        if touched is None:
            return None
        masks = _united_masks({name: p for name, p in parameters.items() if found[name] == PARTLY}, touched)
        return {name: masks.get(name) for name, mark in found.items() if mark != UNTOUCHED}


def _mark(name: str, parameter: Tensor, touched: Mapping[str, Touch] | None) -> int:
    if touched is None:
        return UNTOUCHED if parameter.grad is None else WHOLLY
    if name not in touched:
        return UNTOUCHED
    return WHOLLY if touched[name] is None else PARTLY


@torch.no_grad()
def _sum_gradients(parameters: Mapping[str, Tensor]) -> None:
    """One all-reduce per type of number, over gradients laid end to end; a missing gradient is zero."""
    for dtype in dict.fromkeys(p.dtype for p in parameters.values()):
        group = [p for p in parameters.values() if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
        dist.all_reduce(flat)
        for parameter, part in zip(group, torch.split(flat, [p.numel() for p in group]), strict=True):
            parameter.grad = part.view(parameter.shape)


def _united_masks(parameters: Mapping[str, Tensor], touched: Mapping[str, Touch]) -> dict[str, Touch]:
    """The union over ranks of the masks of parameters that all ranks touched in part or not at all."""
    if not parameters:
        return {}
    masks = [touched.get(name) for name in parameters]
    flat = torch.cat([(torch.zeros_like(p, dtype=torch.uint8) if mask is None else mask.to(torch.uint8)).flatten()
                      for p, mask in zip(parameters.values(), masks, strict=True)])
    dist.all_reduce(flat, dist.ReduceOp.MAX)
    parts = torch.split(flat, [p.numel() for p in parameters.values()])
    return {name: part.view(p.shape).bool() for (name, p), part in zip(parameters.items(), parts, strict=True)}
