"""One registry for operators, strategies, objectives, tasks, devices and executors.

Targets may be lazy (`"package.module:attribute"`), so that looking a name up imports nothing but that one target.
Third parties add theirs through entry points of the group `bodyplan.<kind>s`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

__all__ = ["Registry", "unknown"]

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The text for a name nobody registered: the rule, what was got, the nearest names."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}" if hint else (
        f"unknown {kind} {name!r}; known: {', '.join(names)}")


class Registry(Generic[T]):
    """Names to targets of one kind. A name is taken once; a second registration raises."""

    def __init__(self, kind: str):
        self.kind = kind
        self._targets: dict[str, T | str] = {}
        self._scanned = False

    def register(self, name: str, target: T | str | None = None) -> Any:
        """Register `target` under `name`; without a target, returns a decorator."""
        if target is None:
            return lambda decorated: self.register(name, decorated) or decorated
        held = self._targets.get(name)
        if held is not None and held != target:
            raise ValueError(f"{self.kind} names are unique: {name!r} is already {held!r}; choose another name")
        self._targets[name] = target
        return None

    def names(self) -> list[str]:
        """Every known name, entry points included, sorted."""
        self._scan()
        return sorted(self._targets)

    def get(self, name: str) -> T:
        """The target called `name`. Raises ValueError with the nearest known name."""
        self._scan()
        if name not in self._targets:
            raise ValueError(unknown(self.kind, name, self._targets))
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            self._targets[name] = target
        return target

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for point in entry_points(group=f"bodyplan.{self.kind.replace(' ', '_')}s"):
            load: Callable[[], Any] = point.load
            self.register(point.name, load())
