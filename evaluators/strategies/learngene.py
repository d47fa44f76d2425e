"""Layers on a line: linear expansion from two sets of weights to any depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ...space.operator import Source
from .base import TrainingStrategy, Visit, check_share, resolve
from .draw import draw, largest, largest_size, sibling_genes
from .layers import LayerGroup, layer_groups, named_tensors

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.elastic.supernet import Supernet
    from ...space.space import Space

__all__ = ["Learngene", "linear_expansion"]


@dataclass(frozen=True)
class Learngene(TrainingStrategy):
    """Train with all layers on a line, then let them go (TLEG, Xia et al., 2024).

    "Transformer as Linear Expansion of Learngene". Layer l of L has the weights `B + (l / L) A`, l from 1: two sets
    of weights, the learngene, stand for any depth. In the first part of the steps the largest network trains under
    this constraint (every step ends with the least-squares line through the layers, which is projected gradient
    descent); so layers that are drawn rarely start from what all of them have learned. Then the constraint is
    dropped and `then` chooses subnets. It starts with all layers equal. With sibling candidates the first part also
    visits dealt siblings at their largest sizes; each candidate has its own line.

    Args:
        first: the share of the steps under the constraint.
        then: the strategy of the other steps, a name or an object.
        teacher: a trained module that the first part learns from, as the paper's auxiliary network does; without
            one it learns the task.
    """

    first: float = 0.3
    then: str | TrainingStrategy = "single_path"
    teacher: nn.Module | None = None
    name: ClassVar[str] = "learngene"
    source: ClassVar[Source] = Source("Transformer as Linear Expansion of Learngene", 2024, systems=("S075",))

    def __post_init__(self) -> None:
        check_share("first", self.first)
        resolve(self.then)

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterable[Visit]:
        if step >= round(self.first * steps):
            return resolve(self.then).visits(space, step, steps, seed)
        subnets = [largest(space)] + ([draw(space, step, seed, largest_size)] if sibling_genes(space) else [])
        return [Visit(subnet, "task" if self.teacher is None else "student") for subnet in subnets]

    def fixed_teacher(self, space: Space | None, step: int, steps: int) -> Architecture | nn.Module | None:
        if space is None or step < round(self.first * steps):
            return self.teacher
        return resolve(self.then).fixed_teacher(space, step, steps)

    def alone(self) -> Visit:
        return Visit(None) if self.teacher is None else Visit(None, "student")

    def rewrite(self, net: Supernet, step: int, steps: int) -> None:
        """Put the layers back on their lines while the constraint holds; at the start, all where the first one is."""
        end = round(self.first * steps)
        if end and step <= end:
            for group in layer_groups(named_tensors(net)).values():
                slope, base = _line({min(group.members): group.members[min(group.members)]} if step == 0
                                    else group.members, group.depth)
                _write(group, slope, base)
        else:
            resolve(self.then).rewrite(net, step, steps)


def linear_expansion(source: nn.Module | Supernet, target: nn.Module | Supernet) -> None:
    """Initialise a network of any depth from a trained one: layer l of L gets `B + (l / L) A` (Xia et al., 2024).

    A and B are the least-squares line through the layers of `source` at l / L, parameter by parameter; a source
    trained under the constraint (`Learngene`) has them exactly. Parameters that belong to no layer (embedding,
    head) are copied. What `target` has and `source` has not, or in another shape, stays as it is.

    Args:
        source: a module or a supernet whose layers all learned; with a single layer A is zero.
        target: a module or a supernet that counts its layers by the same names; changed in place.
    """
    given, wanted = named_tensors(source), named_tensors(target)
    lines = {key: _line(group.members, group.depth) for key, group in layer_groups(given).items()}
    groups = layer_groups(wanted)
    for key, group in groups.items():
        if key in lines:
            _write(group, *lines[key])
    layered = {id(tensor) for group in groups.values() for tensor in group.members.values()}
    with torch.no_grad():
        for name, tensor in wanted.items():
            if id(tensor) not in layered and name in given and given[name].shape == tensor.shape:
                tensor.copy_(given[name])


@torch.no_grad()
def _line(members: dict[int, Tensor], depth: int) -> tuple[Tensor, Tensor]:
    """Slope A and base B of the least-squares line through the layers' weights over l / L."""
    places = torch.tensor([(number + 1) / depth for number in members], dtype=torch.float64)
    weights = torch.stack([tensor.double() for tensor in members.values()])
    off = (places - places.mean()).to(weights.device)
    spread = float((off ** 2).sum())
    slope = torch.tensordot(off, weights, 1) / spread if spread else torch.zeros_like(weights[0])
    return slope, weights.mean(0) - float(places.mean()) * slope


@torch.no_grad()
def _write(group: LayerGroup, slope: Tensor, base: Tensor) -> None:
    for number, tensor in group.members.items():
        tensor.copy_(base + (number + 1) / group.depth * slope)
