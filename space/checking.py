"""Everything that can be wrong with a space, found before any work starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .choices import Choice, Repeat, Tied
from .layout import MAX_VARIANTS
from .operator import Operator
from .plan import Block, Loop, Once
from .spec import variants

if TYPE_CHECKING:
    from .space import Space

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
        for address, found in self.space.operators():
            for operator in found:
                for width in self.space.widths():
                    operator.check(width, address)

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
        if isinstance(item, Tied):
            self._body(item.item, where)
        elif isinstance(item, Repeat):
            self._body(item.item, f"{where}[0]")
        elif isinstance(item, Choice):
            for i, candidate in enumerate(item.candidates):
                self._body(candidate, f"{where}.{i}")
        elif isinstance(item, (tuple, list)):
            if not item:
                raise ValueError(f"a body needs at least one layer at {where}: got an empty sequence")
            for i, part in enumerate(item):
                self._body(part, f"{where}.{i}")
        elif isinstance(item, Block):
            for name in ("mixer", "channel", "norm"):
                self._sublayer(getattr(item, name), name, f"{where}.{name}")
        else:
            raise TypeError(f"a body is made of Block, repeat and choice at {where}: got {_named(item)}; "
                            "write Block(mixer=..., channel=...)")

    def _sublayer(self, item: Any, role: str, where: str) -> None:
        if isinstance(item, Tied):
            return self._sublayer(item.item, role, where)
        if isinstance(item, Choice):
            for i, candidate in enumerate(item.candidates):
                self._sublayer(candidate, role, f"{where}.{i}")
            return None
        if isinstance(item, type) and issubclass(item, Operator):
            raise TypeError(f"{role} must be an operator at {where}: got the class {item.__name__}; "
                            f"write {item.__name__}()")
        allowed = ("norm",) if role == "norm" else ("mixer", "channel", "identity")
        if not isinstance(item, Operator) or item.kind not in allowed:
            raise TypeError(f"{role} must be an operator of kind {' or '.join(allowed)} at {where}: got {_named(item)}; "
                            "wrap your own nn.Module as Custom(MyModule)")
        return None


def _named(item: Any) -> str:
    return f"{type(item).__name__} {item!r}" if not isinstance(item, type) else f"the class {item.__name__}"
