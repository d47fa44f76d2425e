"""What a macro is: a part of a network made of other parts.

A macro is an operator whose fields named in `holds` contain further parts: operators, blocks or macros, one or a tuple,
with choices anywhere inside them as long as it sits in a space. It declares only the parameters that are its own;
those of its parts are declared by the parts. From `parts` follow costs, weight addresses and the module's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ...registry import Registry
from ..operator import Length, Operator, enlist

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Macro", "Part", "Runs", "as_items", "at", "is_absent", "kept", "macros"]

macros: Registry[type[Macro]] = Registry("macro")

Visit = Callable[[str, frozenset[int]], frozenset[int]]       # (field, widths in) -> widths out
Numbers = Callable[[str], list[Any]]                          # field -> every value it may take


class Runs(NamedTuple):
    """How a part runs that sees neither the whole sequence in one pass nor every next token in one step.

    whole: the lengths of its passes over a sequence, with how many there are of each. steps: the lengths after which a next
    token is one more, with the share of next tokens that are. anew: the lengths of passes that a next token sets off, with
    the share of next tokens that do. keeps: the length that its decode state has seen; None where it keeps none.
    """

    whole: tuple[tuple[Length, float], ...]
    steps: tuple[tuple[Length, float], ...] = ()
    anew: tuple[tuple[Length, float], ...] = ()
    keeps: Length | None = None


class Part(NamedTuple):
    """One part of a macro as it runs.

    name: its prefix in the macro's module. at: where it stands in the macro's fields: (field,) or (field, index).
    width, length: of the stream that reaches it. decodes: whether every next token goes through it; through an encoder
    only the source does. passes: where it runs otherwise than once over what reaches it, the length of every pass with
    the share of next tokens that take part in it; empty for a part that has weights and does not run.
    times: how often it runs with its weights, a part of a run where a last piece is shorter. runs: all of that at once, where
    a prefill and a next token differ in it.
    """

    name: str
    item: Any
    at: tuple[str | int, ...]
    width: int
    length: Length
    decodes: bool = True
    passes: tuple[tuple[Length, float], ...] | None = None
    times: float = 1
    runs: Runs | None = None


class Macro(Operator, abstract=True):
    """Base of macros. Subclasses are frozen dataclasses and say which fields hold parts.

    streams: those of `holds` whose parts are items of a stream (blocks, macros); the others hold operators. spatial: a
    macro takes grids and sequences alike. recursion: of a macro that repeats its parts, which then stand in one stream.
    vanishes: without anything inside the stream passes as it is, and the macro leaves no trace. reads_source: it takes the
    model's second input, "source" in what is handed on, which comes with the first step where a model decodes.

    A macro is causal, and streams, where all that is inside does; one that looks ahead itself says so.

    A subclass defines `parts`, `build` and `sketch`; `axes` for parameters of its own; `out` and `survey` where it
    changes the width or the length of the stream. `axes` may depend on how many parts there are, never on which: a
    supernet asks it with placeholders (None) in their place.
    """

    kind: ClassVar[str] = "macro"
    holds: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[tuple[str, ...]] = ()
    spatial: ClassVar[bool] = True
    vanishes: ClassVar[bool] = False
    reads_source: ClassVar[bool] = False
    recursion: Any = None

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return all(item.causal for item in self.inside())

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return all(item.streaming for item in self.inside())

    @property
    def is_empty(self) -> bool:
        return self.vanishes and not self.inside()

    def inside(self) -> list[Any]:
        """The operators and items of streams that it runs, norms and joins left out."""
        held = (item for name in self.holds for item in as_items(getattr(self, name)))
        return [item for item in held if not is_absent(item) and getattr(item, "kind", "") not in ("norm", "join")]

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        if not abstract:
            enlist(macros, cls)

    def check_stream(self, field: str, items: list[Any], where: str) -> None:
        """Raise ValueError where what may stand in a field of parts does not suit the macro; fields may be choices."""

    def axes(self, width: int) -> dict[str, Any]:
        """The macro's own parameters by their names in its module."""
        return {}

    def parts(self, width: int, length: Length) -> list[Part]:
        """The parts in the order they run, without those that are absent."""
        raise TypeError(f"{type(self).__name__} must define parts(width, length)")

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        """Width and length of the stream after the macro."""
        return width, length

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Multiply-adds of the macro's own parameters; those of its parts are added by who asks."""
        return 0.0

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return 0.0

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        """Draw the macro into a graph, from node `stream` on; returns the node its output leaves."""
        raise TypeError(f"{type(self).__name__} must define sketch(draft, stream, place, width)")

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        """Visit every field that holds parts with the widths that may reach it; returns the widths that may leave."""
        for name in cls.holds:
            visit(name, widths)
        return widths

    def rewrites(self) -> tuple[Callable[[Any], Any], ...]:
        """What the macro may make of an operator inside it, beside leaving it as it is."""
        return ()

    def label(self) -> str:
        """Class name and the plain fields that are not at their default, for nodes of the graph."""
        from ..graph import shell_label

        return shell_label(self)

    def plain_fields(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of the fields that hold no parts."""
        yield from ((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in self.holds)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kept:
    """An item that is there, and its index among all that were declared."""

    index: int
    item: Any


def as_items(held: Any) -> tuple[Any, ...]:
    """What a field holds as a tuple: a tuple as it is, nothing for None, else the one item."""
    if held is None:
        return ()
    return tuple(held) if isinstance(held, (tuple, list)) else (held,)


def is_absent(item: Any) -> bool:
    """Whether an item of a stream leaves no trace: a block without sublayers, `Identity()` in the place of a layer."""
    return bool(getattr(item, "is_empty", False)) or getattr(item, "kind", "") == "identity"


def kept(held: Any) -> list[Kept]:
    """The items of a stream that are there, with their declared index; placeholders count."""
    return [Kept(i, item) for i, item in enumerate(as_items(held)) if not is_absent(item)]


def at(field: str, held: Any, index: int) -> tuple[str | int, ...]:
    """Where item `index` of a field stands: a field that holds a single item has no index."""
    return (field, index) if isinstance(held, (tuple, list)) else (field,)
