"""A network of any architecture that starts from the weights of a trained one of another.

Legend: H heads, P head_dim, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..axes import Axis, Dim, Param, flat_indices
from ..equivalents.comparing import declared_by
from ..operators.attention import Attention
from ..operators.liger import Liger
from ..operators.mixture_of_heads import MixtureOfHeads
from ..operators.windows import head_size
from ..plan import Block
from ..tree import Placed, axes_of
from .converting import Tensors
from .depth import is_last
from .heads import as_mixture, moved_to_mixture, regrouped_heads

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["aligned", "inherited"]

GAP = 1.0             # of a layer that comes or goes, in alignments
FAR = 3.0             # of two layers that have nothing in common: more than two gaps


@torch.no_grad()
def inherited(model: SequenceModel, architecture: Architecture, seed: int = 0) -> SequenceModel:
    """A network of `architecture` that computes what the trained one does, as far as its weights reach.

    Layers are aligned, so that one that came or went in the middle leaves the others theirs. What has a counterpart
    takes its weights: parameters of other sizes the part that both have, leading entries first; attention with other
    key/value heads their means or copies; a mixture of heads and `Liger` those of attention, and back. What is new inside a
    layer of another size reads as it was drawn and starts without a say: the columns of last matrices are zero, as are
    the last matrices of operators, and whole layers, that have no counterpart. Everything else is drawn from `seed`.

    The outputs stay, to rounding, where layers come in, hidden sizes, heads of a given head_dim or key/value heads grow, or
    all heads of a mixture are open; they move where something is taken away.

    Raises ValueError for a model that was not built from an architecture.
    """
    parent = declared_by(model)
    made = architecture.build(seed)
    held = {name: p.detach().to("cpu") for name, p in model.named_parameters()}
    tensors = dict(made.named_parameters())
    pairs = aligned(parent.plan.layers, architecture.plan.layers)
    before = {place.name: place for place in parent.placed}
    for place in architecture.placed:
        old = before.get(_former(place.name, pairs))
        fresh: Tensors = {key: tensors[f"{place.name}.{key}"] for key in axes_of(place.operator, place.width)}
        if old is None:
            _silence(place, fresh)
            continue
        given = {key: held[f"{old.name}.{key}"] for key in axes_of(old.operator, old.width)}
        for key, tensor in _taken(old, place, given, fresh).items():
            fresh[key].copy_(tensor)
    return made


def aligned(before: Sequence[Any], after: Sequence[Any]) -> dict[int, int]:
    """Which old layer each new one goes on with, by the cheapest row of edits, in order; new ones without are left out."""
    rows, columns = len(before), len(after)
    cost = [[GAP * (i + j) if not i or not j else 0.0 for j in range(columns + 1)] for i in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            cost[i][j] = min(cost[i - 1][j - 1] + _apart(before[i - 1], after[j - 1]), cost[i - 1][j] + GAP,
                             cost[i][j - 1] + GAP)
    found, i, j = {}, rows, columns
    while i and j:
        if cost[i][j] == cost[i - 1][j - 1] + _apart(before[i - 1], after[j - 1]):
            i, j = i - 1, j - 1
            found[j] = i
        elif cost[i][j] == cost[i][j - 1] + GAP:
            j -= 1
        else:
            i -= 1
    return found


def _apart(one: Any, other: Any) -> float:
    """From 0, equal layers, over layers some of whose operators go on, to FAR."""
    if one == other:
        return 0.0
    if not isinstance(one, Block) or not isinstance(other, Block):
        return 0.5 if type(one) is type(other) else FAR
    each = [0.0 if a == b else 0.25 if _goes_on(a, b) else 1.0
            for a, b in ((one.mixer, other.mixer), (one.channel, other.channel))]
    return FAR if min(each) == 1.0 else sum(each) / 2 + 0.05


def _goes_on(one: Any, other: Any) -> bool:
    """Whether an operator's weights are a start for another's."""
    kin = {frozenset((Attention, Liger)), frozenset((Attention, MixtureOfHeads))}
    return type(one) is type(other) or frozenset((type(one), type(other))) in kin


def _former(name: str, pairs: dict[int, int]) -> str:
    """The name a place had in the old network, "" for one in a new layer."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name
    index = pairs.get(int(parts[1]))
    return "" if index is None else ".".join(["layers", str(index), *parts[2:]])


def _silence(place: Placed, fresh: Tensors) -> None:
    """Zeros in the last matrices of an operator that has no counterpart."""
    if place.operator.kind in ("mixer", "channel"):
        for key, tensor in fresh.items():
            if is_last(key):
                tensor.zero_()


def _taken(old: Placed, new: Placed, given: Tensors, fresh: Tensors) -> Tensors:
    """The weights of a new operator from its counterpart's."""
    one, other = old.operator, new.operator
    if one == other and old.width == new.width:
        return given
    if _mixes(old, new):
        return moved_to_mixture(one, other, new.width, given)                          # type: ignore[arg-type]
    if _regroups(old, new):
        return regrouped_heads("", one, other, new.width, given)
    if not _goes_on(one, other) and not (one.kind == other.kind and one.kind not in ("mixer", "channel", "macro")):
        _silence(new, fresh)
        return {}
    held, wanted = axes_of(one, old.width), axes_of(other, new.width)
    return {key: _overlap(given[key], held[key], fresh[key], declared, is_last(key))
            for key, declared in wanted.items() if key in held}


def _mixes(old: Placed, new: Placed) -> bool:
    """Whether a mixture has the heads of a plain attention, one by one."""
    one, other = old.operator, new.operator
    if not isinstance(one, Attention) or not isinstance(other, MixtureOfHeads) or old.width != new.width:
        return False
    same_size = one.sizes(old.width)[2] == head_size(other, new.width)
    return same_size and as_mixture(one, other.shared_heads, other.top_k) == replace(other, head_dim=one.head_dim)


def _regroups(old: Placed, new: Placed) -> bool:
    """Whether two attentions differ in their key/value heads alone, a multiple of one another."""
    one, other = old.operator, new.operator
    if not isinstance(one, Attention) or not isinstance(other, Attention) or old.width != new.width:
        return False
    now, wanted = one.sizes(old.width)[0], other.sizes(new.width)[0]
    return max(now, wanted) % min(now, wanted) == 0 and replace(one, kv_heads=other.kv_heads) == other


def _overlap(given: Tensor, held: Param, fresh: Tensor, wanted: Param, silent: bool) -> Tensor:
    """A fresh tensor with the entries that both have as they were; of a last matrix, zeros in all the others.

    As it was drawn where declarations differ in more than sizes.
    """
    common = _common(held, wanted)
    if common is None:
        return fresh
    made = torch.zeros_like(fresh) if silent else fresh.detach().clone()
    made.view(-1)[flat_indices(_nested(wanted), common)] = given.reshape(-1)[flat_indices(_nested(held), common)].to(made)
    return made


def _nested(declared: Param) -> Param:
    return replace(declared, share="nested")


def _common(one: Param, other: Param) -> Param | None:
    """The part of two parameters that both have, None where they mean other things."""
    if len(one.dims) != len(other.dims):
        return None
    dims = [_common_dim(a, b) for a, b in zip(one.dims, other.dims, strict=True)]
    return None if None in dims else replace(other, dims=tuple(dims), share="nested")   # type: ignore[arg-type]


def _common_dim(one: Dim, other: Dim) -> Dim | None:
    if [len(segment) for segment in one.segments] != [len(segment) for segment in other.segments]:
        return None
    segments = []
    for a, b in zip(one.segments, other.segments, strict=True):
        factors = [_common_factor(x, y) for x, y in zip(a, b, strict=True)]
        if None in factors:
            return None
        segments.append(tuple(factors))
    return Dim(tuple(segments))                                                         # type: ignore[arg-type]


def _common_factor(one: Axis | Dim, other: Axis | Dim) -> Axis | Dim | None:
    if isinstance(one, Dim) and isinstance(other, Dim):
        return _common_dim(one, other)
    if isinstance(one, Dim) or isinstance(other, Dim) or one.name != other.name or one.select != other.select:
        return None
    if one.size != other.size and one.select not in ("leading", "trailing", "centre"):
        return None                                   # which entries of the larger the smaller has is not known
    return Axis(one.name, min(one.size, other.size), one.select)
