"""How a smaller tensor is taken from a larger one: strided pieces worked out once per pair of declarations.

Every axis takes *runs* of equally spaced entries: one for a range, several for an index list. The runs of all axes
multiply to *pieces*, blocks of the stored tensor with a stride per axis. A single piece whose axes merge to the wanted
dimensions is a view; a few pieces are copied by one autograd node, whose backward pass writes them into zeros; many
pieces (a scattered index list) are gathered dimension by dimension. Values and gradients are copies in all three, so
they are equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..axes import Axis, Dim

if TYPE_CHECKING:
    from ..axes import Param

__all__ = ["Piece", "Take", "taker", "union_mask"]

MOST_PIECES = 32             # copies of more are slower than an index
MOST_REMEMBERED = 1 << 18    # entries of a tensor whose masks are kept


class Piece(NamedTuple):
    """A block: entry (i, j, ...) of `shape` goes from `offset + i * strides[0] + ...` to the same with `to_`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    to_strides: tuple[int, ...]
    to_offset: int


class Take:
    """`take(stored)` for one pair of declarations: a view where strides allow, else a differentiable copy.

    is_whole: nothing is left out. is_view: the result shares memory with a contiguous `stored`.
    """

    def __init__(self, held: Param, wanted: Param):
        self.held_shape, self.shape = held.shape, wanted.shape
        self.is_whole = self.is_view = wanted.share == "own" and self.shape == self.held_shape
        if not self.is_whole:
            self._lay_out(held, wanted)

    def _lay_out(self, held: Param, wanted: Param) -> None:
        by_dim = [_dim_pieces(have, want) for have, want in zip(held.dims, wanted.dims, strict=True)]
        strides = _contiguous(self.held_shape)
        self.is_whole = self.shape == self.held_shape and all(map(_is_identity, by_dim, self.shape))
        self.is_view = all(len(pieces) == 1 and len(pieces[0].shape) <= 1 for pieces in by_dim)
        if self.is_view:
            steps = [pieces[0].strides[0] if pieces[0].shape else 1 for pieces in by_dim]
            self.strides = tuple(step * stride for step, stride in zip(steps, strides, strict=True))
            self.offset = sum(pieces[0].offset * stride for pieces, stride in zip(by_dim, strides, strict=True))
        elif math.prod(map(len, by_dim)) <= MOST_PIECES:
            self.pieces: list[Piece] | None = _multiplied(by_dim, strides, _contiguous(self.shape))
        else:
            self.pieces = None
            self.positions = [None if have.size == want.size and _is_identity(pieces, want.size)
                              else _positions(pieces, have, want)
                              for pieces, have, want in zip(by_dim, held.dims, wanted.dims, strict=True)]

    def __call__(self, stored: Tensor) -> Tensor:
        assert stored.shape == self.held_shape, f"a tensor of another shape: {tuple(stored.shape)}, {self.held_shape}"
        if self.is_whole:
            return stored
        stored = stored.contiguous()
        if self.is_view:
            return stored.as_strided(self.shape, self.strides, stored.storage_offset() + self.offset)
        if self.pieces is not None:
            taken: Tensor = _Gather.apply(stored, self)                                # type: ignore[no-untyped-call]
            return taken
        for d, positions in enumerate(self.positions):
            if positions is not None:
                stored = stored.index_select(d, positions.to(stored.device))
        return stored

    def mark(self, mask: Tensor) -> None:
        """Set the entries this take reads in a boolean mask of the stored shape."""
        if self.is_whole:
            mask.fill_(True)
        elif self.is_view:
            mask.as_strided(self.shape, self.strides, self.offset).fill_(True)
        elif self.pieces is not None:
            for shape, strides, offset, _, _ in self.pieces:
                mask.as_strided(shape, strides, offset).fill_(True)
        else:
            numbers = self(torch.arange(mask.numel(), device=mask.device).view(mask.shape))
            mask.view(-1)[numbers.flatten()] = True


def union_mask(takes: frozenset[Take], device: torch.device) -> Tensor | None:
    """What any of `takes`, which are of one tensor, reads: a boolean mask, or None for everything.

    Masks of small tensors are remembered, since every training step asks for the same few. Do not write to them.
    """
    if any(take.is_whole for take in takes):
        return None
    first = next(iter(takes))
    return (_remembered_union if math.prod(first.held_shape) <= MOST_REMEMBERED else _union)(takes, device)


def _union(takes: frozenset[Take], device: torch.device) -> Tensor | None:
    mask = torch.zeros(next(iter(takes)).held_shape, dtype=torch.bool, device=device)
    for take in takes:
        take.mark(mask)
    return None if bool(mask.all()) else mask


_remembered_union = lru_cache(maxsize=1024)(_union)


@lru_cache(maxsize=65536)
def taker(held: Param, wanted: Param) -> Take:
    """The take of `wanted` from tensors declared by `held`, remembered.

    Raises ValueError when an axis of `wanted` is larger than what is held, or names an entry that is not there.
    """
    return Take(held, wanted)


class _Gather(torch.autograd.Function):
    """Copy the pieces out; backward is `_Scatter` and the other way round, so that it differentiates twice."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, take: Take) -> Tensor:
        ctx.take = take
        taken, start = stored.new_empty(take.shape), stored.storage_offset()
        for shape, strides, offset, to_strides, to_offset in take.pieces or ():
            taken.as_strided(shape, to_strides, to_offset).copy_(stored.as_strided(shape, strides, start + offset))
        return taken

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Scatter.apply(gradients[0], ctx.take), None                            # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """Copy the pieces back into zeros."""

    @staticmethod
    def forward(ctx: Any, taken: Tensor, take: Take) -> Tensor:
        ctx.take = take
        taken = taken.contiguous()
        stored, start = taken.new_zeros(take.held_shape), taken.storage_offset()
        for shape, strides, offset, to_strides, to_offset in take.pieces or ():
            stored.as_strided(shape, strides, offset).copy_(taken.as_strided(shape, to_strides, start + to_offset))
        return stored

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Gather.apply(gradients[0].contiguous(), ctx.take), None                # type: ignore[no-untyped-call]


# -- pieces of one dimension, counted in its entries -----------------------------------------------------------------

def _dim_pieces(have: Dim, want: Dim) -> list[Piece]:
    found, start, to_start = [], 0, 0
    for h, w in zip(have.segments, want.segments, strict=True):
        sizes, to_sizes = tuple(f.size for f in h), tuple(f.size for f in w)
        for piece in _multiplied([_factor_pieces(*pair) for pair in zip(h, w, strict=True)],
                                 _contiguous(sizes), _contiguous(to_sizes)):
            found.append(piece._replace(offset=piece.offset + start, to_offset=piece.to_offset + to_start))
        start, to_start = start + math.prod(sizes), to_start + math.prod(to_sizes)
    return _joined([piece for piece in found if 0 not in piece.shape]) or [Piece((0,), (1,), 0, (1,), 0)]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Stretches of consecutive entries that follow each other in both tensors become one."""
    found: list[Piece] = []
    for piece in pieces:
        piece = piece if piece.shape else piece._replace(shape=(1,), strides=(1,), to_strides=(1,))
        if found and _follows(found[-1], piece):
            last = found.pop()
            piece = last._replace(shape=(last.shape[0] + piece.shape[0],))
        found.append(piece)
    return found


def _follows(last: Piece, piece: Piece) -> bool:
    ends = (last.offset + last.shape[0], last.to_offset + last.shape[0])
    return last.strides == last.to_strides == piece.strides == piece.to_strides == (1,) and (
        ends == (piece.offset, piece.to_offset))


def _factor_pieces(have: Axis | Dim, want: Axis | Dim) -> list[Piece]:
    if isinstance(have, Dim):
        assert isinstance(want, Dim)
        return _dim_pieces(have, want)
    assert isinstance(want, Axis)
    _check(have, want)
    if isinstance(want.select, tuple):
        return _runs(want.select)
    if want.select == "spread" and 0 < want.size < have.size:
        return _runs(tuple(i * have.size // want.size for i in range(want.size)))
    # Aligning the middle entries, rather than halving the difference, makes a take of a take the direct take.
    start = {"leading": 0, "spread": 0, "trailing": have.size - want.size,
             "centre": (have.size - 1) // 2 - (want.size - 1) // 2}[want.select]
    return [Piece((want.size,), (1,), start if want.size else 0, (1,), 0)]


def _check(have: Axis, want: Axis) -> None:
    """Raise ValueError unless everything `want` names is stored."""
    if isinstance(want.select, tuple):
        if any(not 0 <= i < have.size for i in want.select):
            raise ValueError(f"axis {want.name!r} takes entries that are stored: got {want.select} of {have.size}")
    elif want.size > have.size:
        raise ValueError(f"axis {want.name!r} takes at most what is stored: got {want.size} of {have.size}; "
                         "build the supernet from a space that contains this size")


def _runs(indices: tuple[int, ...]) -> list[Piece]:
    """Maximal stretches of equally spaced, rising indices."""
    found, start = [], 0
    while start < len(indices):
        end = start + 1
        step = indices[end] - indices[start] if end < len(indices) else 1
        while step > 0 and end < len(indices) and indices[end] - indices[end - 1] == step:
            end += 1
        found.append(Piece((end - start,), (max(step, 1),), indices[start], (1,), start))
        start = end
    return found


def _multiplied(factors: Sequence[list[Piece]], strides: Sequence[int], to_strides: Sequence[int]) -> list[Piece]:
    """All combinations of one piece of each factor, at the factors' strides, axes merged where they can be."""
    return [_merged(chosen, strides, to_strides) for chosen in product(*factors)]


def _merged(chosen: Sequence[Piece], strides: Sequence[int], to_strides: Sequence[int]) -> Piece:
    axes: list[tuple[int, int, int]] = []
    for piece, stride, to_stride in zip(chosen, strides, to_strides, strict=True):
        for size, step, to_step in zip(piece.shape, piece.strides, piece.to_strides, strict=True):
            axis = (size, step * stride, to_step * to_stride)
            if axes and axes[-1][1:] == (size * axis[1], size * axis[2]):
                axes[-1] = (axes[-1][0] * size, *axis[1:])
            elif size != 1:
                axes.append(axis)
    offset = sum(piece.offset * stride for piece, stride in zip(chosen, strides, strict=True))
    to_offset = sum(piece.to_offset * stride for piece, stride in zip(chosen, to_strides, strict=True))
    return Piece(tuple(a[0] for a in axes), tuple(a[1] for a in axes), offset, tuple(a[2] for a in axes), to_offset)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1:]) for d in range(len(shape)))


def _is_identity(pieces: list[Piece], size: int) -> bool:
    if len(pieces) != 1 or pieces[0].offset:
        return False
    return (pieces[0].shape, pieces[0].strides) in (((size,), (1,)), ((), ())) and math.prod(pieces[0].shape) == size


def _positions(pieces: list[Piece], have: Dim, want: Dim) -> Tensor:
    stored, found = torch.arange(have.size), torch.empty(want.size, dtype=torch.int64)
    for shape, strides, offset, to_strides, to_offset in pieces:
        found.as_strided(shape, to_strides, to_offset).copy_(stored.as_strided(shape, strides, offset))
    return found
