"""A space as JSON, and back.

Classes stand by name with their fields; a tied item carries a number, so that it is one object again when read. What has
no JSON form (a function, a user's module class) is written by its name, which identifies it but cannot be read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from . import choices
from .operator import operators
from .plan import Block, Loop, Once

__all__ = ["SCHEMA_VERSION", "from_plain", "to_plain"]

SCHEMA_VERSION = 1
WORDS: dict[str, type] = {cls.__name__: cls for cls in (
    choices.Choice, choices.Integer, choices.Real, choices.Subset, choices.Repeat, choices.Tied, Block, Loop, Once)}


def to_plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of the fields of a space."""
    ties: dict[int, int] = {}
    return {name: _write(item, ties) for name, item in definition.items()}


def _write(item: Any, ties: dict[int, int]) -> Any:
    if isinstance(item, (tuple, list)):
        return [_write(part, ties) for part in item]
    if isinstance(item, choices.Tied):
        number = ties.setdefault(id(item), len(ties))
        return {"Tied": {"number": number, "item": _write(item.item, ties)}}
    if is_dataclass(item) and not isinstance(item, type):
        return {type(item).__name__: {f.name: _write(getattr(item, f.name), ties) for f in fields(item) if f.init}}
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    return {"name": f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', type(item).__qualname__)}"}


def from_plain(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a space from their JSON form. Raises ValueError for what JSON cannot hold."""
    ties: dict[int, choices.Tied] = {}
    return {name: _read(item, ties, name) for name, item in stored.items()}


def _read(item: Any, ties: dict[int, choices.Tied], where: str) -> Any:
    if isinstance(item, list):
        return tuple(_read(part, ties, where) for part in item)
    if not isinstance(item, dict):
        return item
    (name, inner), = item.items()
    if not isinstance(inner, dict):
        raise ValueError(f"a space is read back from JSON only without code of your own: {where} holds {inner}; "
                         "load it from the Python file that defines it")
    if name == "Tied":
        if inner["number"] not in ties:
            ties[inner["number"]] = choices.tied(_read(inner["item"], ties, where))
        return ties[inner["number"]]
    make: Callable[..., Any] = WORDS[name] if name in WORDS else operators.get(name)
    return make(**{key: _read(value, ties, f"{where}.{key}") for key, value in inner.items()})
