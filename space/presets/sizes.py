"""Looking up a size, and the architecture of a space without decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ...registry import unknown
from ..architecture import Architecture
from ..space import Space

__all__ = ["at_size", "only"]

T = TypeVar("T")


def at_size(sizes: Mapping[str, T], size: str) -> T:
    """The entry of a size. Raises ValueError with the known ones."""
    if size not in sizes:
        raise ValueError(unknown("size", size, sizes))
    return sizes[size]


def only(**parts: Any) -> Architecture:
    """The architecture of a space that decides nothing."""
    space = Space(**parts)
    assert not space.genes, "a fixed architecture has no decisions"
    return space.sample(0)
