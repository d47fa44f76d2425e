"""Named axes: what every parameter dimension means, and the one function that takes a smaller tensor from a larger.

A dimension is an ordered list of *segments*; a segment is a row-major product of named axes. An operator writes
`param((kv_heads * group * head_dim) + (kv_heads * head_dim), width)` once; weight sharing, extraction, growth and
parameter counts follow from that line. An axis takes its *leading* entries unless it says otherwise: *trailing*
(causal taps, where the newest tap must stay), *centre* (symmetric kernels), or an explicit list of indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Axis", "Dim", "Init", "Param", "axis", "flat_indices", "largest", "param", "take", "take_steps"]

Select = Literal["leading", "trailing", "centre"] | tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """A named axis of a fixed size. `a * b` is their product (row-major), `a + b` their concatenation."""

    name: str
    size: int
    select: Select = "leading"

    def __mul__(self, other: Axis | Dim) -> Dim:
        return Dim(((self,),)) * other

    def __add__(self, other: Axis | Dim) -> Dim:
        return Dim(((self,),)) + other


@dataclass(frozen=True)
class Dim:
    """One tensor dimension: segments in order, each a product of axes."""

    segments: tuple[tuple[Axis, ...], ...]

    def __mul__(self, other: Axis | Dim) -> Dim:
        right = as_dim(other)
        assert len(self.segments) == len(right.segments) == 1, "products are taken before concatenation"
        return Dim((self.segments[0] + right.segments[0],))

    def __add__(self, other: Axis | Dim) -> Dim:
        return Dim(self.segments + as_dim(other).segments)

    @property
    def size(self) -> int:
        return sum(math.prod(a.size for a in segment) for segment in self.segments)


@dataclass(frozen=True)
class Init:
    """How a parameter starts. `linear` is normal with std `gain / sqrt(fan_in)`, fan_in being all dims but the first.

    Kinds: linear (gain), normal (std in `gain`), zeros, ones, constant (`low`), uniform and log_uniform (`low`, `high`),
    a_log (log of uniform, as Mamba-2's A), dt_bias (inverse softplus of log-uniform, as Mamba-2's time step).
    """

    kind: str = "linear"
    gain: float = 1.0
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Param:
    """A parameter by its named axes. `share="own"` keeps one tensor per size (norm gains, gates), never a slice."""

    dims: tuple[Dim, ...]
    share: Literal["nested", "own"] = "nested"
    init: Init = Init()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    @property
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


def param(*dims: Axis | Dim, share: Literal["nested", "own"] = "nested", init: str | Init = "linear") -> Param:
    """Declare a parameter: one argument per tensor dimension."""
    return Param(tuple(as_dim(d) for d in dims), share, Init(init) if isinstance(init, str) else init)


def largest(members: list[Param]) -> Param:
    """The per-axis maximum over `members`, which must agree in everything but sizes.

    The result may exceed every member: two heads of 32 and four of 16 are held as four of 32.
    """
    first = members[0]
    for other in members[1:]:
        assert _skeleton(other) == _skeleton(first), f"declarations differ in more than sizes: {first} {other}"
    dims = []
    for d, dim in enumerate(first.dims):
        segments = []
        for s, segment in enumerate(dim.segments):
            axes = (Axis(a.name, max(m.dims[d].segments[s][i].size for m in members), a.select)
                    for i, a in enumerate(segment))
            segments.append(tuple(axes))
        dims.append(Dim(tuple(segments)))
    return Param(tuple(dims), first.share, first.init)


def _skeleton(member: Param) -> object:
    return [[[a.name for a in segment] for segment in dim.segments] for dim in member.dims], member.share


def take(stored: Tensor, held: Param, wanted: Param) -> Tensor:
    """The part of `stored` (declared by `held`) that `wanted` names: a view where strides allow, else a differentiable copy.

    Raises ValueError when an axis of `wanted` is larger than what is held.
    """
    result = stored
    for step in take_steps(held, wanted):
        result = step(result)
    return result


def flat_indices(held: Param, wanted: Param) -> Tensor:
    """Positions in the flattened stored tensor that `take` reads, in order (int64, shape [wanted.numel]).

    Those of small tensors are remembered: every training step asks for the same ones. Do not write to the result.
    """
    return _remembered_indices(held, wanted) if held.numel <= 1 << 18 else _indices(held, wanted)


def _indices(held: Param, wanted: Param) -> Tensor:
    import torch

    return take(torch.arange(held.numel).view(held.shape), held, wanted).flatten()


_remembered_indices = lru_cache(maxsize=1024)(_indices)


@lru_cache(maxsize=65536)
def take_steps(held: Param, wanted: Param) -> tuple[Callable[[Tensor], Tensor], ...]:
    """The tensor operations of a `take`, in order; none when everything is taken."""
    steps = []
    for d, (have, want) in enumerate(zip(held.dims, wanted.dims, strict=True)):
        steps.extend(_dim_steps(d, have, want))
    return tuple(steps)


def _dim_steps(d: int, have: Dim, want: Dim) -> list[Callable[[Tensor], Tensor]]:
    if len(have.segments) == 1:
        return _segment_steps(d, have.segments[0], want.segments[0])
    if all(not _segment_steps(d, h, w) for h, w in zip(have.segments, want.segments, strict=True)):
        return []
    sizes = [math.prod(a.size for a in segment) for segment in have.segments]
    parts = [_segment_steps(d, h, w) for h, w in zip(have.segments, want.segments, strict=True)]

    def concatenate(tensor: Tensor) -> Tensor:
        import torch

        taken = []
        for piece, steps in zip(torch.split(tensor, sizes, d), parts, strict=True):
            for step in steps:
                piece = step(piece)
            taken.append(piece)
        return torch.cat(taken, d)

    return [concatenate]


def _segment_steps(d: int, have: tuple[Axis, ...], want: tuple[Axis, ...]) -> list[Callable[[Tensor], Tensor]]:
    for h, w in zip(have, want, strict=True):
        if w.size > h.size:
            raise ValueError(f"axis {w.name!r} takes at most what is stored: got {w.size} of {h.size}; "
                             "build the supernet from a space that contains this size")
    changed = [i for i, (h, w) in enumerate(zip(have, want, strict=True))
               if w.size != h.size or isinstance(w.select, tuple)]
    if not changed:
        return []
    if changed == [0]:
        inner = math.prod(a.size for a in have[1:])
        return _axis_steps(d, have[0], want[0], inner)
    shape = tuple(a.size for a in have)
    steps: list[Callable[[Tensor], Tensor]] = [lambda t: t.unflatten(d, shape)]  # type: ignore[no-untyped-call]
    for i in changed:
        steps += _axis_steps(d + i, have[i], want[i], 1)
    return [*steps, lambda t: t.flatten(d, d + len(shape) - 1)]


def _axis_steps(d: int, have: Axis, want: Axis, inner: int) -> list[Callable[[Tensor], Tensor]]:
    if isinstance(want.select, tuple):
        import torch

        index = torch.tensor([i * inner + j for i in want.select for j in range(inner)])
        return [lambda t: t.index_select(d, index.to(t.device))]
    start = {"leading": 0, "trailing": have.size - want.size, "centre": (have.size - want.size) // 2}[want.select]
    return [lambda t: t.narrow(d, start * inner, want.size * inner)]
