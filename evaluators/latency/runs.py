"""How often each operator of an architecture runs, at which width and length: what a sum over operators goes over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ...space.macros.base import Macro
from ...space.operator import Length, Operator, tokens_of
from ...space.plan import Block, Loop, Once
from ...space.tree import axes_of

if TYPE_CHECKING:
    from ...space.architecture import Architecture

__all__ = ["Run", "layers_of", "runs_below", "runs_of"]


class Run(NamedTuple):
    """An operator where it runs `times` times with one set of weights over `length` tokens, or (height, width) of a grid.

    phase: "decode" for one more token after them, else "prefill". times is a share where few tokens take part.
    """

    place: str
    operator: Operator
    width: int
    length: Length
    times: float
    phase: str


def runs_of(architecture: Architecture, phase: str = "prefill", length: Length | None = None) -> Iterator[Run]:
    """Every operator as it runs, in order: a loop's as often as it goes around. Macros with parameters or products of their
    own stand before their parts; empty sublayers are left out. length: as `architecture.cost` takes it."""
    for place, item, width, each, times in layers_of(architecture, length):
        yield from runs_below(place, item, width, each, times, phase)


def layers_of(architecture: Architecture, length: Length | None = None) -> Iterator[tuple[str, Any, int, Length, float]]:
    """(place, item, width, length, times) of the embedding, every layer, the last norm and the head."""
    plan: Any = architecture.plan
    inner = architecture.default_length if length is None else length
    yield "embed", plan.embed, plan.width, tokens_of(inner), 1.0
    width, times = plan.width, float(plan.recursion.times)
    for i, item in enumerate(plan.layers):
        yield f"layers.{i}", item, width, inner, times
        width, inner = item.out(width, inner)
    for name in ("norm", "head"):
        yield name, getattr(plan, name), width, tokens_of(inner), 1.0


def runs_below(place: str, item: Any, width: int, length: Length, times: float, phase: str) -> Iterator[Run]:
    """The runs of one part of an architecture with everything inside it."""
    if item.kind in ("embedding", "norm", "head"):
        yield Run(place, item, width, tokens_of(length), times, phase)
    else:
        yield from _runs(place, item, width, length, times, phase)


def _runs(place: str, item: Any, width: int, length: Length, times: float, phase: str) -> Iterator[Run]:
    if item.kind == "identity" or not times:
        return
    seen = length if item.spatial else tokens_of(length)
    if not isinstance(item, Macro) or _works(item, width, seen):
        yield Run(place, item, width, seen, times, phase)
    if not isinstance(item, Macro):
        return
    if isinstance(item.recursion, (Once, Loop)):
        times *= item.recursion.times
    for part in item.parts(width, length):
        for each, count, how in _passes(part, phase):
            yield from _runs(f"{place}.{part.name}", part.item, part.width, each, times * count, how)


def _works(macro: Any, width: int, length: Any) -> bool:
    """Whether a macro has parameters or products beside those of its parts."""
    return not isinstance(macro, Block) and bool(
        axes_of(macro, width) or macro.macs(width, length) or macro.decode_macs(width, length))


def _passes(part: Any, phase: str) -> list[tuple[Length, float, str]]:
    """(length, how often, phase) of what a part does in a phase, as the formulas of costs have it."""
    is_decoding = phase == "decode"
    if part.runs is not None:
        if not is_decoding:
            return [(length, count, phase) for length, count in part.runs.whole]
        return [*((length, share, "decode") for length, share in part.runs.steps),
                *((length, share, "prefill") for length, share in part.runs.anew)]
    if is_decoding and not part.decodes:
        return []
    if part.passes is not None:
        return [(length, part.times * (share if is_decoding else 1.0), phase) for length, share in part.passes]
    return [(part.length, part.times, phase)]
