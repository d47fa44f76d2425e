"""Walks over a resolved body: every operator with its place, and the costs of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from .axes import Axis, Init, Param, param
from .macros.base import Macro, Part, Runs
from .operator import Length, Operator, tokens_of
from .plan import Block, Loop, Once

__all__ = ["Placed", "Tally", "axes_of", "lora_params", "matrices_of", "placed", "tally", "tally_items"]


class Placed(NamedTuple):
    """An operator or a macro with parameters of its own, where it stands in the module and what reaches it.

    decodes: whether every next token goes through it.
    """

    name: str
    operator: Operator
    width: int
    length: Length
    decodes: bool = True


class Tally(NamedTuple):
    """Parameters, multiply-adds of a prefill and of one more token, and numbers of state."""

    parameters: int = 0
    macs: float = 0.0
    decode_macs: float = 0.0
    state: int = 0

    def plus(self, other: Tally, times: float = 1) -> Tally:
        """This and `other`, which runs `times` times with one set of weights."""
        return Tally(self.parameters + other.parameters, self.macs + times * other.macs,
                     self.decode_macs + times * other.decode_macs, self.state + round(times * other.state))


def placed(items: Iterable[Any], width: int, length: Length, prefix: str = "layers") -> Iterator[Placed]:
    """Every operator of a stream, macros before their parts; of a grid, sequence operators see the tokens."""
    for index, item in enumerate(items):
        yield from _placed(item, width, length, f"{prefix}.{index}")
        width, length = item.out(width, length)


def _placed(item: Any, width: int, length: Length, name: str, decodes: bool = True) -> Iterator[Placed]:
    if not isinstance(item, Block):
        yield Placed(name, item, width, length if item.spatial else tokens_of(length), decodes)
    if isinstance(item, Macro):
        for part in item.parts(width, length):
            yield from _placed(part.item, part.width, part.length, f"{name}.{part.name}", decodes and part.decodes)


def matrices_of(items: Iterable[Any], width: int, prefix: str = "layers") -> Iterator[tuple[str, Param]]:
    """(name, declaration) of every matrix that a per-iteration correction applies to."""
    for place in placed(items, width, 1, prefix):
        for key, declared in axes_of(place.operator, place.width).items():
            if declared.is_matrix:
                yield f"{place.name}.{key}", declared


def lora_params(matrix: Param, times: int, rank: int) -> dict[str, Param]:
    """The declared pair of one matrix: A starts random, B at zero, one pair per iteration."""
    loops, ranks = Axis("iteration", times), Axis("rank", rank)
    rows, columns = matrix.dims
    return {"A": param(loops, ranks, columns, init=Init("last")), "B": param(loops, rows, ranks, init="zeros")}


def tally_items(items: tuple[Any, ...], recursion: Once | Loop, width: int, length: Length) -> Tally:
    """What a stack of items costs, repeated as `recursion` says."""
    once, inner = Tally(), width
    for item in items:
        once = once.plus(tally(item, inner, length))
        inner, length = item.out(inner, length)
    total = Tally().plus(once, recursion.times)
    if recursion.lora_rank:
        total = total.plus(_lora(items, recursion, width))
    return total


def _lora(items: tuple[Any, ...], recursion: Once | Loop, width: int) -> Tally:
    """Every iteration forms W + B A once, whatever the number of tokens."""
    total = Tally()
    for item in items:
        try:
            own = _remembered_lora(item, width, recursion.times, recursion.lora_rank)
        except TypeError:
            own = _lora_of(item, width, recursion.times, recursion.lora_rank)
        total, width = total.plus(own), item.out(width, 1)[0]
    return total


def _lora_of(item: Any, width: int, times: int, rank: int) -> Tally:
    matrices = [declared for _, declared in matrices_of((item,), width)]
    numbers = sum(p.numel for matrix in matrices for p in lora_params(matrix, times, rank).values())
    merge = float(sum(matrix.numel for matrix in matrices) * rank * times)
    return Tally(numbers, merge, merge)


def tally(item: Any, width: int, length: Length) -> Tally:
    """The costs of an operator or a macro, remembered where its config is hashable."""
    try:
        return _remembered_tally(item, width, length)
    except TypeError:
        return _tally(item, width, length)


def _tally(item: Any, width: int, length: Length) -> Tally:
    seen = length if item.spatial else tokens_of(length)
    own = Tally(sum(p.numel for p in axes_of(item, width).values() if not p.statistic),
                item.macs(width, seen) if tokens_of(seen) else 0.0,            # before the first token there is but a state
                item.decode_macs(width, seen), item.state_numel(width, seen))
    if not isinstance(item, Macro):
        return own
    if isinstance(item.recursion, (Once, Loop)):
        return own.plus(tally_items(tuple(part.item for part in item.parts(width, length)), item.recursion, width, length))
    for part in item.parts(width, length):
        if part.runs is not None:
            own = own.plus(_runs(part, part.runs))
            continue
        inner = tally(part.item, part.width, part.length) if part.passes is None else _passes(part)
        own = own.plus(inner if part.decodes else inner._replace(decode_macs=0.0, state=0), part.times)
    return own


def _passes(part: Part) -> Tally:
    """A part that runs over some lengths with one set of weights; a pass that few next tokens take costs as few."""
    total = Tally(tally(part.item, part.width, part.length).parameters)
    for length, share in part.passes or ():
        _, macs, decode_macs, state = tally(part.item, part.width, length)
        total = total.plus(Tally(0, macs, share * decode_macs, state))
    return total


def _runs(part: Part, runs: Runs) -> Tally:
    """A part whose passes over a sequence, and whose share in next tokens, are listed."""
    def at(length: Length) -> Tally:
        return tally(part.item, part.width, length)

    macs = sum(count * at(length).macs for length, count in runs.whole)
    decode_macs = (sum(share * at(length).decode_macs for length, share in runs.steps)
                   + sum(share * at(length).macs for length, share in runs.anew))
    state = 0 if runs.keeps is None else at(runs.keeps).state
    return Tally(at(part.length).parameters, macs, decode_macs, state)


_remembered_tally = lru_cache(maxsize=65536)(_tally)
_remembered_lora = lru_cache(maxsize=65536)(_lora_of)


@lru_cache(maxsize=65536)
def _axes_cached(op: Operator, width: int) -> dict[str, Param]:
    return op.axes(width)


def axes_of(op: Operator, width: int) -> dict[str, Param]:
    """The operator's declarations, remembered where its config is hashable."""
    try:
        return _axes_cached(op, width)
    except TypeError:
        return op.axes(width)
