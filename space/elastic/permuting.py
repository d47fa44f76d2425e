"""Which named axes may be permuted, and permuting them.

Axes of one operator with equal names are one *group*: their entries belong together, so a permutation is applied
wherever the name stands and the function stays the same. Where every occurrence of an axis stands inside the same outer
axis (`kv_heads * group * head_dim`: every `head_dim` inside `kv_heads`), each outer entry has a permutation of its own.
The residual stream is one group over all operators, by its size.

Left as they are: axes that do not take leading entries (taps, positions), those an operator names in `fixed`, those
whose order operators share (`couples`), and a macro's own, whose entries are its parts.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..axes import Axis, Dim, Param
from ..macros.base import Macro
from ..operator import Operator

__all__ = ["AxisGroup", "Traits", "Weight", "axis_groups", "blocks", "permute", "summed", "traits_of"]

STREAM = ("width", "stage_width", "inner_width")          # axes that are the residual stream
ORDERED = {"iteration": "iterations follow one another"}
Outer = tuple[tuple[str, int], ...]                       # (name, size) of axes that each have their own permutation


class Traits(NamedTuple):
    """What operators say of their axes, of all that may stand in one place."""

    fixed: Mapping[str, str]
    couples: frozenset[str]
    batched: frozenset[str]
    is_macro: bool
    name: str


class Weight(NamedTuple):
    """A parameter of a network: its declaration, what its operator says, and `owner`, which tells places apart."""

    name: str
    tensor: Tensor
    declared: Param
    owner: str
    traits: Traits


class Placed(NamedTuple):
    """An axis of a block: the tensor dimension it belongs to, and the positions of the axes it stands inside, by name."""

    axis: Axis
    dim: int
    inside: dict[str, int]


class Block(NamedTuple):
    """A part of a tensor as a view with one dimension per axis."""

    view: Tensor
    axes: tuple[Placed, ...]


class Occurrence(NamedTuple):
    """Where an axis stands: the parameter, which of its blocks, which dimension of that, inside which others."""

    weight: Weight
    block: int
    position: int
    placed: Placed
    inside: dict[str, int]

    def view(self) -> Block:
        """The block as it is in memory now."""
        return blocks(self.weight.tensor, self.weight.declared)[self.block]


def traits_of(operators: Sequence[Operator]) -> Traits:
    """What holds for each of `operators`: fixed where one of them says so, batched where all do."""
    fixed: Mapping[str, str] = ChainMap(*(operator.fixed for operator in operators))   # type: ignore[arg-type]
    return Traits(fixed, frozenset().union(*(operator.couples for operator in operators)),
                  frozenset.intersection(*(operator.batched for operator in operators)),
                  isinstance(operators[0], Macro), type(operators[0]).__name__)


@dataclass
class AxisGroup:
    """Axes that are permuted together. `kept` says why they are not, empty when they may be."""

    owner: str
    name: str
    size: int
    occurrences: list[Occurrence] = field(default_factory=list)
    outer: Outer = ()
    kept: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its permutation: outer sizes, then its own."""
        return (*(size for _, size in self.outer), self.size)

    @property
    def is_stream(self) -> bool:
        return not self.owner and self.name == STREAM[0]


def blocks(tensor: Tensor, declared: Param) -> list[Block]:
    """The blocks of a tensor: one per combination of segments, each a view with one dimension per axis."""
    found = [Block(tensor, ())]
    for d, dim in enumerate(declared.dims):
        found = [Block(view, (*block.axes, *(Placed(axis, d, inside) for axis, inside in axes))) for block in found
                 for view, axes in _split(block.view, len(block.axes), dim, {})]
    return found


Axes = tuple[tuple[Axis, dict[str, int]], ...]


def _split(view: Tensor, d: int, dim: Dim, inside: dict[str, int]) -> Iterator[tuple[Tensor, Axes]]:
    start = 0
    for segment in dim.segments:
        sizes = [factor.size for factor in segment]
        part = view.narrow(d, start, math.prod(sizes)).unflatten(d, sizes)            # type: ignore[no-untyped-call]
        start += math.prod(sizes)
        if 0 not in sizes:
            yield from _factors(part, d, segment, inside)


def _factors(view: Tensor, d: int, factors: Sequence[Axis | Dim], inside: dict[str, int]) -> Iterator[tuple[Tensor, Axes]]:
    if not factors:
        yield view, ()
        return
    first, rest = factors[0], factors[1:]
    heads = [(view, ((first, inside),))] if isinstance(first, Axis) else list(_split(view, d, first, inside))
    for part, axes in heads:
        within = inside | {axis.name: d + i for i, (axis, _) in enumerate(axes)}
        for whole, others in _factors(part, d + len(axes), rest, within):
            yield whole, (*axes, *others)


def axis_groups(weights: Sequence[Weight], present: Iterable[tuple[Traits, int]] = ()) -> list[AxisGroup]:
    """The groups of a network's axes with more than one entry, in the order in which to permute them.

    present: what everything in the network says, and the width it works at; operators without parameters count.
    """
    everything = [*present, *((weight.traits, 0) for weight in weights)]
    coupled = frozenset().union(*(traits.couples for traits, _ in everything))
    groups: dict[tuple[str, str, int], AxisGroup] = {}
    for weight in weights:
        for number, block in enumerate(blocks(weight.tensor, weight.declared)):
            for position, placed in enumerate(block.axes):
                if placed.axis.size > 1:
                    _add(groups, weight, number, block, position, placed)
    sizes = _sizes(weights)
    for group in groups.values():
        group.outer = () if group.is_stream else _common(group)
        group.kept = _kept(group, coupled, everything)
        if not group.is_stream and len(sizes[group.owner, group.name]) > 1:
            group.kept = group.kept or "its tensors hold different numbers of entries"
    return sorted(groups.values(), key=lambda group: -len(group.outer))       # inner axes first: their rows stay in place


def _sizes(weights: Sequence[Weight]) -> dict[tuple[str, str], set[int]]:
    """Every size, by owner and name: tensors that exist once per size may divide their entries in other ways."""
    found: dict[tuple[str, str], set[int]] = {}
    for weight in weights:
        for axis in (axis for dim in weight.declared.dims for axis in dim.axes()):
            found.setdefault((weight.owner, axis.name), set()).add(axis.size)
    return found


def _add(groups: dict[tuple[str, str, int], AxisGroup], weight: Weight, number: int, block: Block, position: int,
         placed: Placed) -> None:
    axis = placed.axis
    owner, name = ("", STREAM[0]) if axis.name in STREAM else (weight.owner, axis.name)
    batched = {p.axis.name: i for i, p in enumerate(block.axes) if p.axis.name in weight.traits.batched and i != position}
    group = groups.setdefault((owner, name, axis.size), AxisGroup(owner, name, axis.size))
    group.occurrences.append(Occurrence(weight, number, position, placed, batched | placed.inside))


def _common(group: AxisGroup) -> Outer:
    """Axes that every occurrence stands inside, at one size."""
    found: Outer | None = None
    for occurrence in group.occurrences:
        axes = occurrence.view().axes
        here = tuple((name, axes[position].axis.size) for name, position in occurrence.inside.items())
        found = here if found is None else tuple(pair for pair in found if pair in here)
    return tuple(pair for pair in found or () if pair[1] > 1)


def _kept(group: AxisGroup, coupled: frozenset[str], everything: list[tuple[Traits, int]]) -> str:
    for weight, _, _, placed, _ in group.occurrences:
        axis = placed.axis
        if axis.select != "leading":
            return f"entries are taken by their place ({axis.select})"
        if weight.traits.is_macro and not group.is_stream:
            return "entries are the parts of a macro"
        for reasons in (ORDERED, weight.traits.fixed):
            if axis.name in reasons:
                return reasons[axis.name]
    if group.name in coupled:
        return "operators of several layers share its order"
    if group.is_stream:
        for traits, width in everything:
            if width == group.size and STREAM[0] in traits.fixed:
                return f"{traits.name}: {traits.fixed[STREAM[0]]}"
    return ""


@torch.no_grad()
def permute(group: AxisGroup, order: Tensor) -> None:
    """Write every tensor of the group in `order` along its axis: entry i becomes what entry `order[..., i]` was."""
    for occurrence in group.occurrences:
        view, position = occurrence.view().view, occurrence.position
        places = [*(occurrence.inside[name] for name, _ in group.outer), position]
        shape = [size if d in places else 1 for d, size in enumerate(view.shape)]
        by_place = sorted(range(len(places)), key=places.__getitem__)
        index = order.to(view.device).permute(by_place).reshape(shape).expand(view.shape)
        view.copy_(view.gather(position, index))


def summed(group: AxisGroup, occurrence: Occurrence, values: Tensor) -> Tensor:
    """Sums of `values`, shaped as the parameter, per entry of the group: shape of its permutation."""
    view = blocks(values, occurrence.weight.declared)[occurrence.block].view
    first = [*(occurrence.inside[name] for name, _ in group.outer), occurrence.position]
    rest = [d for d in range(view.ndim) if d not in first]
    return view.permute(*first, *rest).flatten(len(first)).sum(-1) if rest else view.permute(*first)
