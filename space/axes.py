"""Named axes: what every parameter dimension means, and the one function that takes a smaller tensor from a larger.

A dimension is an ordered list of *segments*; a segment is a row-major product of named axes. An operator writes
`param((kv_heads * group * head_dim) + (kv_heads * head_dim), width)` once; weight sharing, extraction, growth, ordering
and parameter counts follow from that line. A factor of a product may itself be a concatenation: projections packed per
head are `kv_heads * ((group * head_dim) + head_dim + head_dim)`.

Which entries of a larger axis a smaller one takes:

    leading     the first (default): heads, channels, experts, rank
    trailing    the last: causal taps, where the newest must stay
    centre      the middle, entry (size - 1) // 2 staying where it is: symmetric kernels
    spread      every n-th, evenly over the whole: a coarser grid of positions over the same image
    (3, 0, 1)   exactly these, in this order: any k of n, an order of importance

A take of a take is the take, for leading, trailing and centre always, for spread where each size divides the larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Axis", "Dim", "Init", "Param", "axis", "flat_indices", "largest", "param", "renamed", "take"]

Select = Literal["leading", "trailing", "centre", "spread"] | tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """A named axis of a fixed size. `a * b` is their product (row-major), `a + b` their concatenation.

    Raises ValueError for an index list that has not one entry per position, or names one twice.
    """

    name: str
    size: int
    select: Select = "leading"

    def __post_init__(self) -> None:
        if isinstance(self.select, tuple) and not len(set(self.select)) == len(self.select) == self.size:
            raise ValueError(f"an index list has one entry of its own per position at axis {self.name!r}: got {self.select} "
                             f"for size {self.size}")

    @property
    def reach(self) -> int:
        """How many entries must be stored for this axis to be taken."""
        return max(self.select, default=-1) + 1 if isinstance(self.select, tuple) else self.size

    def __mul__(self, other: Axis | Dim) -> Dim:
        return Dim(((self,),)) * other

    def __add__(self, other: Axis | Dim) -> Dim:
        return Dim(((self,),)) + other


@dataclass(frozen=True)
class Dim:
    """One tensor dimension: segments in order, each a product of axes and of concatenations."""

    segments: tuple[tuple[Axis | Dim, ...], ...]

    def __mul__(self, other: Axis | Dim) -> Dim:
        return Dim((self._factors() + as_dim(other)._factors(),))

    def __add__(self, other: Axis | Dim) -> Dim:
        return Dim(self.segments + as_dim(other).segments)

    def _factors(self) -> tuple[Axis | Dim, ...]:
        return self.segments[0] if len(self.segments) == 1 else (self,)

    @cached_property
    def size(self) -> int:
        return sum(math.prod(f.size for f in segment) for segment in self.segments)

    def axes(self) -> Iterator[Axis]:
        """Every axis, in order, as often as it stands here."""
        for segment in self.segments:
            for factor in segment:
                yield from (factor,) if isinstance(factor, Axis) else factor.axes()


@dataclass(frozen=True)
class Init:
    """How a parameter starts. `linear` is normal with std `gain / sqrt(fan_in)`, fan_in being all dims but the first.

    Kinds: linear (gain), last (as linear, fan_in being the last dim alone: stacks of matrices), normal (std in `gain`),
    table:NAME (one of `operators.feature_table`, for a matrix), zeros, ones, identity (ones on the diagonal of a matrix),
    constant (`low`), values (`values` along the last dim, the same everywhere), uniform and log_uniform (`low`, `high`),
    a_log (log of uniform, as Mamba-2's A), dt_bias (inverse softplus of log-uniform, as Mamba-2's time step).
    """

    kind: str = "linear"
    gain: float = 1.0
    low: float = 0.0
    high: float = 1.0
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Param:
    """A parameter by its named axes. `share="own"` keeps one tensor per size (norm gains, gates), never a slice.

    statistic: a tensor that is measured, not trained; in the module an `nn.Parameter(requires_grad=False)`.
    """

    dims: tuple[Dim, ...]
    share: Literal["nested", "own"] = "nested"
    init: Init = Init()
    statistic: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Declarations are keys in every training step; hashing the nested tuples anew took longer than the takes.
        return hash((self.dims, self.share, self.init, self.statistic))

    def __reduce__(self) -> tuple[Any, ...]:
        return Param, (self.dims, self.share, self.init, self.statistic)     # hashes of names differ between processes

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    @cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies activations as a matrix; per-loop LoRA applies to these."""
        return len(self.dims) == 2 and self.init.kind == "linear"


def axis(name: str, size: int, select: Select = "leading") -> Axis:
    """An axis called `name` with `size` entries."""
    return Axis(name, size, select)


def as_dim(part: Axis | Dim) -> Dim:
    return part if isinstance(part, Dim) else Dim(((part,),))


def param(*dims: Axis | Dim, share: Literal["nested", "own"] = "nested", init: str | Init = "linear",
          statistic: bool = False) -> Param:
    """Declare a parameter: one argument per tensor dimension."""
    return Param(tuple(as_dim(d) for d in dims), share, Init(init) if isinstance(init, str) else init, statistic)


def renamed(declared: Param, name: str, instead: Axis | Dim) -> Param:
    """The declaration with `instead` wherever axis `name` stood: a part made for the residual width, used inside."""
    def factor(part: Axis | Dim) -> Axis | Dim:
        if isinstance(part, Dim):
            return dim(part)
        return instead if part.name == name else part

    def dim(part: Dim) -> Dim:
        products = [math.prod(map(as_dim, map(factor, segment)), start=Dim(((),))) for segment in part.segments]
        return sum(products[1:], start=products[0])

    return replace(declared, dims=tuple(dim(part) for part in declared.dims))


def largest(members: list[Param]) -> Param:
    """The per-axis maximum over `members`, which must agree in everything but sizes and selections.

    The result may exceed every member: two heads of 32 and four of 16 are held as four of 32. An index list counts up
    to its largest entry. Parameters with a tensor per size must have the same, however its axes multiply to it.
    """
    first = members[0]
    if first.share == "own":
        assert all(other.shape == first.shape for other in members), f"own tensors have one size: {members}"
        return first
    for other in members[1:]:
        assert _skeleton(other) == _skeleton(first), f"declarations differ in more than sizes: {first} {other}"
    dims = tuple(_largest_dim(list(dims)) for dims in zip(*(m.dims for m in members), strict=True))
    return Param(dims, first.share, first.init, first.statistic)


def _largest_dim(dims: list[Dim]) -> Dim:
    segments = zip(*(dim.segments for dim in dims), strict=True)
    return Dim(tuple(tuple(_largest_factor(list(factors)) for factors in zip(*members, strict=True))
                     for members in segments))


def _largest_factor(factors: list[Any]) -> Axis | Dim:
    if isinstance(factors[0], Dim):
        return _largest_dim(factors)
    ranges = [a.select for a in factors if not isinstance(a.select, tuple)]
    return Axis(factors[0].name, max(a.reach for a in factors), ranges[0] if ranges else "leading")


def _skeleton(member: Param) -> object:
    return [_dim_skeleton(dim) for dim in member.dims], member.share, member.statistic


def _dim_skeleton(dim: Dim) -> object:
    return [[f.name if isinstance(f, Axis) else _dim_skeleton(f) for f in segment] for segment in dim.segments]


def take(stored: Tensor, held: Param, wanted: Param) -> Tensor:
    """The part of `stored` (declared by `held`) that `wanted` names: a view where strides allow, else a differentiable copy.

    Raises ValueError when an axis of `wanted` is larger than what is held.
    """
    from .elastic.taking import taker

    return taker(held, wanted)(stored)


def flat_indices(held: Param, wanted: Param) -> Tensor:
    """Positions in the flattened stored tensor that `take` reads, in order (int64, shape [wanted.numel]).

    Those of small tensors are remembered: every training step asks for the same ones. Do not write to the result.
    """
    return _remembered_indices(held, wanted) if held.numel <= 1 << 18 else _indices(held, wanted)


def _indices(held: Param, wanted: Param) -> Tensor:
    import torch

    return take(torch.arange(held.numel).view(held.shape), held, wanted).flatten()


_remembered_indices = lru_cache(maxsize=1024)(_indices)
