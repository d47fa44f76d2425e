"""A space as JSON, and back.

Classes stand by name with the fields that are not at their default, so that a new field changes no stored space and no
hash. A tied item and the symbol of a rule carry a number, so that they are one object again when read. What has no JSON
form (a function, a user's module class) is written by its name, which identifies it but cannot be read back.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from .. import choices
from .. import macros as macro_files
from .. import operators as operator_files
from ..grammar import Rule, Symbol, checked
from ..macros.base import macros
from ..macros.chunking import Chunker
from ..macros.recursion import Recursion
from ..macros.reductions import Reduction
from ..macros.residual import Residual
from ..operator import operators
from ..operators.cache_policies import CachePolicy
from ..operators.subsampled_attention import Subsample
from ..plan import Loop, Once
from .versions import SPACE as SCHEMA_VERSION

__all__ = ["SCHEMA_VERSION", "from_plain", "to_plain"]

WORDS: dict[str, type] = {cls.__name__: cls for cls in (
    choices.Absent, choices.Choice, choices.Integer, choices.Real, choices.Subset, choices.Repeat, Once, Loop)}
OWN_CODE = "a space is read back from JSON only without code of your own"


def to_plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of the fields of a space."""
    numbers: dict[int, int] = {}
    return {name: _write(item, numbers) for name, item in definition.items()}


def _write(item: Any, numbers: dict[int, int]) -> Any:
    if isinstance(item, (tuple, list)):
        return [_write(part, numbers) for part in item]
    if isinstance(item, choices.Tied):
        return {"Tied": {"number": _number(item, numbers), "item": _write(item.item, numbers)}}
    if isinstance(item, Rule):
        return {"Rule": {"number": _number(item.symbol, numbers), "depth": item.depth,
                         "template": _write(item.template, numbers)}}
    if isinstance(item, Symbol):
        return {"Symbol": {"number": _number(item, numbers)}}
    if is_dataclass(item) and not isinstance(item, type):
        return {type(item).__name__: {name: _write(value, numbers) for name, value in _told(item)}}
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    return {"name": f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', type(item).__qualname__)}"}


def _number(item: Any, numbers: dict[int, int]) -> int:
    return numbers.setdefault(id(item), len(numbers))


def _told(item: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass that are not at their default."""
    for f in fields(item):
        value = getattr(item, f.name)
        default = _default(f)
        if f.init and not (type(value) is type(default) and value == default):
            yield f.name, value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def from_plain(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a space from their JSON form. Raises ValueError for what JSON cannot hold."""
    reader = _Reader()
    return {name: reader.read(item, name) for name, item in stored.items()}


class _Reader:
    def __init__(self) -> None:
        self.ties: dict[int, choices.Tied] = {}
        self.symbols: dict[int, Symbol] = {}

    def read(self, item: Any, where: str) -> Any:
        if isinstance(item, list):
            return tuple(self.read(part, where) for part in item)
        if not isinstance(item, dict):
            return item
        (name, inner), = item.items()
        if not isinstance(inner, dict):
            raise ValueError(f"{OWN_CODE}: {where} holds {inner}; load it from the Python file that defines it")
        if name == "Symbol":
            return self.symbols.setdefault(inner["number"], Symbol())
        if name == "Rule":
            symbol = self.symbols.setdefault(inner["number"], Symbol())
            return checked(Rule(self.read(inner["template"], where), symbol, inner["depth"]))
        if name == "Tied":
            if inner["number"] not in self.ties:
                self.ties[inner["number"]] = choices.tied(self.read(inner["item"], where))
            return self.ties[inner["number"]]
        return _class_of(name, where)(**{key: self.read(value, f"{where}.{key}") for key, value in inner.items()})


def _class_of(name: str, where: str) -> Callable[..., Any]:
    found = _known(name)
    if found is None:
        _import_all()
        found = _known(name)
    if found is None:
        raise ValueError(f"{OWN_CODE}: {where} holds a {name}, which is no operator known here; load it from the Python "
                         "file that defines it, or import that file first")
    return found


def _known(name: str) -> Callable[..., Any] | None:
    kinds: list[type[Any]] = [Residual, *Residual.__subclasses__(), *Recursion.__subclasses__(), *_below(Reduction),
                              *CachePolicy.__subclasses__(), Subsample, *Chunker.__subclasses__()]
    plain = WORDS | {cls.__name__: cls for cls in kinds}
    if name in plain:
        return plain[name]
    if name in operators.names():
        return operators.get(name)
    return macros.get(name) if name in macros.names() else None


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    """The classes that come from it, at any distance."""
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def _import_all() -> None:
    """Operators register when their file is imported; public names are imported on first use only."""
    for folder in (operator_files, macro_files):
        for module in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
            importlib.import_module(module.name)
