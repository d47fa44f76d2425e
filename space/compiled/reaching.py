"""Which operators the rules over decisions leave at which widths: a pair that no genome holds need not be buildable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ..constraints.expressions import Comparison, Condition, Constant, Expression, Logic, Read
from ..constraints.leaves import Count, Field
from ..constraints.rules import Within
from ..elastic.layout import Site
from ..operator import Operator

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["Misfit", "first_reached"]


class Misfit(NamedTuple):
    """An operator that cannot be built at a width that may reach it, as far as the fields of the space tell."""

    site: Site
    operator: Operator
    width: int
    error: Exception

    @property
    def decided(self) -> tuple[Operator, ...]:
        """What a genome decides where this operator is built: itself, or what a macro makes it of."""
        return self.site.origins.get(self.operator, (self.operator,))


@dataclass(frozen=True, eq=False, repr=False)
class Among(Condition):
    """Whether the values of some fields stand together in a row of a table."""

    read: tuple[Expression, ...]
    rows: frozenset[tuple[Any, ...]]

    def _value(self, read: Read) -> bool:
        return tuple(field._value(read) for field in self.read) in self.rows

    def _children(self) -> tuple[Expression, ...]:
        return self.read

    def _text(self) -> str:
        return f"({', '.join(field._text() for field in self.read)}) in a table of {len(self.rows)}"

    def _json(self) -> Any:
        return {"among": [[field._json() for field in self.read], sorted(map(repr, self.rows))]}


def first_reached(space: Space, misfits: Sequence[Misfit]) -> Misfit | None:
    """The first of them that some genome has which keeps the rules over decisions; None where none has.

    Without such rules that is the first. A pair that is not known to be out of reach counts as reached.
    """
    if not misfits or not space.ruling.prunes:
        return next(iter(misfits), None)
    for cls in dict.fromkeys(type(misfit.operator) for misfit in misfits):
        found = [misfit for misfit in misfits if type(misfit.operator) is cls]
        if _is_reached(space, cls.__name__, found):
            return _placed(space, found)
    return None


def _placed(space: Space, found: list[Misfit]) -> Misfit:
    """The first misfit that is reached, of some of which one is, at the first place where it is."""
    narrowed = found
    while len(narrowed) > 1:
        half = narrowed[:len(narrowed) // 2]
        narrowed = half if _is_reached(space, type(half[0].operator).__name__, half) else narrowed[len(half):]
    same = [m for m in found if m.operator == narrowed[0].operator and m.width == narrowed[0].width]
    return next((m for m in same if _is_reached(space, _path(m.site), [m])), same[0])


def _path(site: Site) -> str:
    """Where the operator of a site is written; that of a tied one stands in the first of its slots."""
    return site.address.rpartition("|")[2].rpartition("~")[2]


def _is_reached(space: Space, of: str, misfits: Sequence[Misfit]) -> bool:
    """Whether a genome that keeps the rules has one of these among its parts `of` a class or at a path."""
    names = _names(space, [operator for misfit in misfits for operator in misfit.decided])
    around = () if "width" in names else ("width",)            # a part's own field of that name hides the width around it

    def among(width: tuple[str, ...]) -> Among:
        return Among(tuple(Field((name,)) for name in (*names, *width)),
                     frozenset((*(getattr(operator, name) for name in names), *(misfit.width for _ in width))
                               for misfit in misfits for operator in misfit.decided))

    def has(where: Among) -> bool:
        return space.ruling.allows(Comparison(">=", Count(of, where if where.read else None), Constant(1)))

    ways: tuple[Callable[[], bool], ...] = (
        lambda: has(among(around)),
        lambda: space.ruling.leaves_broken(Within(of, Logic("not", (among(around),)))),          # a width decided later
        lambda: has(among(())))                                                     # a width that is no single decision
    for way in ways:
        try:
            return way()
        except ValueError:
            continue
    return True


def _names(space: Space, operators: Collection[Operator]) -> tuple[str, ...]:
    """The fields by which operators of one class are told apart: plain values, decided among countable options."""
    (cls,) = {type(operator) for operator in operators}
    continuous = {word for gene in space.genes if gene.options is None for word in gene.path.split(".")}
    held = (*getattr(cls, "holds", ()), *continuous)
    return tuple(f.name for f in fields(cls) if f.init and f.name not in held                  # type: ignore[arg-type]
                 and all(_is_plain(getattr(operator, f.name)) for operator in operators))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
