"""Everything that can be wrong with a space, found before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..choices import Integer, Real
from ..elastic.layout import MAX_VARIANTS, Survey
from ..grammar import held, leaves
from ..macros.base import Macro
from ..operator import Operator
from ..plan import Block, Loop, Once, check_input_scale, check_placement
from .reaching import Misfit, first_reached
from .spec import variants

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["check_space"]


def check_space(space: Space) -> None:
    """Raise ValueError or TypeError naming the rule, what was got, and where."""
    _Checker(space).check()


class _Checker:
    def __init__(self, space: Space):
        self.space = space

    def check(self) -> None:
        self._widths()
        self._kinds("embed", "embedding")
        self._kinds("head", "head")
        self._kinds("norm", "norm")
        self._body(self.space.definition["body"], "body")
        self._recursion()
        misfit = first_reached(self.space, list(self._misfits()))
        if misfit is not None:
            raise misfit.error
        self._tied_head()

    def _misfits(self) -> Iterator[Misfit]:
        """What cannot be built, whether or not a rule excludes it."""
        for site in self.space.sites():
            for operator in site.operators:
                for width in sorted(site.widths):
                    try:
                        operator.check(width, site.address)
                    except (ValueError, TypeError) as error:
                        yield Misfit(site, operator, width, error)

    def _tied_head(self) -> None:
        """A tied head reads the stream with the embedding's matrix, so the body must leave the width as it is."""
        heads = variants(self.space.node("head"), MAX_VARIANTS)
        if not any(getattr(head, "tied", False) for head in heads):
            return
        for width in self.space.widths():
            leaving = Survey().visit(self.space.node("body"), frozenset({width}))
            if leaving != {width}:
                raise ValueError(f"a tied head needs the stream at the embedding's width at head: got {width} there and "
                                 f"{' or '.join(map(str, sorted(leaving)))} after the body; write LanguageHead(tied=False)")

    def _widths(self) -> None:
        for width in self.space.widths():
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ValueError(f"width must be a positive int at width: got {width!r}; write choice(64, 96)")

    def _kinds(self, name: str, kind: str) -> None:
        for value in variants(self.space.node(name), MAX_VARIANTS):
            if not isinstance(value, Operator) or value.kind != kind:
                raise TypeError(f"{name} must be an operator of kind {kind!r}: got {_named(value)}")

    def _recursion(self) -> None:
        for value in variants(self.space.node("recursion"), MAX_VARIANTS):
            if not isinstance(value, (Once, Loop)):
                raise TypeError(f"recursion must be Once() or Loop(...): got {_named(value)}")
            if isinstance(value, Loop):
                value.check("recursion")

    def _body(self, item: Any, where: str) -> None:
        inside = held(item)
        if inside is not None:
            for end, part in inside:
                self._body(part, where + end)
        elif isinstance(item, (tuple, list)):
            if not item and where == "body":
                raise ValueError(f"a body needs at least one layer at {where}: got an empty sequence")
            for i, part in enumerate(item):
                self._body(part, f"{where}.{i}")
        elif isinstance(item, Macro) and item.kind == "macro":
            self._macro(item, where)
        else:
            raise TypeError(f"a body is made of Block, macros, repeat and choice at {where}: got {_named(item)}; "
                            "write Block(mixer=..., channel=...)")

    def _macro(self, item: Macro, where: str) -> None:
        if isinstance(item, Block):
            self._number(item.placement, check_placement, f"{where}.placement")
            self._number(item.input_scale, check_input_scale, f"{where}.input_scale")
        for name in item.holds:
            if name in item.streams:
                self._body(getattr(item, name), f"{where}.{name}")
            elif getattr(item, name) is not None:
                self._sublayer(getattr(item, name), name, f"{where}.{name}")
            item.check_stream(name, list(leaves(getattr(item, name))), where)

    def _number(self, item: Any, check: Callable[[Any, str], None], where: str) -> None:
        """A plain field of a block, which may be a choice."""
        inside = held(item)
        for end, part in inside or ():
            self._number(part, check, where + end)
        if inside is None:
            for value in (item.low, item.high) if isinstance(item, (Integer, Real)) else (item,):
                check(value, where)

    def _sublayer(self, item: Any, role: str, where: str) -> None:
        inside = held(item)
        if inside is not None:
            for end, part in inside:
                self._sublayer(part, role, where + end)
            return None
        if isinstance(item, type) and issubclass(item, Operator):
            raise TypeError(f"{role} must be an operator at {where}: got the class {item.__name__}; "
                            f"write {item.__name__}()")
        if isinstance(item, (tuple, list)) and role not in ("mixer", "channel", "norm", "join"):
            for i, part in enumerate(item):
                self._sublayer(part, role, f"{where}.{i}")
            return None
        if isinstance(item, Macro) and not isinstance(item, Block):
            return self._macro(item, where)
        allowed = (role,) if role in ("norm", "join") else ("mixer", "channel", "identity")
        if not isinstance(item, Operator) or item.kind not in allowed:
            raise TypeError(f"{role} must be an operator of kind {' or '.join(allowed)} at {where}: got {_named(item)}; "
                            "wrap your own nn.Module as Custom(MyModule)")
        return None


def _named(item: Any) -> str:
    return f"{type(item).__name__} {item!r}" if not isinstance(item, type) else f"the class {item.__name__}"
