"""Schema versions of what is stored, and how older ones are read.

`UPGRADES[kind, version]` turns a stored object of that version into one of the next. A version nobody knows raises, newer
ones above all: nothing is guessed. The JSON Schema files of the present versions are in `../schema/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ARCHITECTURE", "GENOME", "SPACE", "UPGRADES", "upgraded"]

GENOME = 1
SPACE = 2                    # 2: fields at their default are left out; subset, repeat, absent and rule words as they are now
ARCHITECTURE = 2             # 2: the hash of the space is that of its version 2
CURRENT = {"genome": GENOME, "space": SPACE, "architecture": ARCHITECTURE}


def _space_from_1(stored: dict[str, Any]) -> dict[str, Any]:
    return stored                # version 1 wrote every field, which version 2 reads as well


def _architecture_from_1(stored: dict[str, Any]) -> dict[str, Any]:
    """Version 1 named the space by a hash nobody computes any more: the genome and the network's hash must do."""
    return {**stored, "space_hash": None}


UPGRADES: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("space", 1): _space_from_1, ("architecture", 1): _architecture_from_1}


def upgraded(stored: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`stored` in the present version of its kind. Raises ValueError for a missing, unknown or newer schema_version."""
    made, current = dict(stored), CURRENT[kind]
    version = made.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"a stored {kind} says its schema_version, a whole number from 1 to {current}: got {version!r}; "
                         f"read what {kind}.to_json() wrote")
    if version > current:
        raise ValueError(f"this version of bodyplan reads {kind}s up to schema_version {current}: got {version}; "
                         "update bodyplan to read it")
    while version < current:
        made = UPGRADES[kind, version](made)
        version += 1
    return {**made, "schema_version": current}
