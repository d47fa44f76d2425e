"""Reading a stored profile: what is wrong with it is said by the name of the row, with what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .runner import PROFILE_SCHEMA, PROFILE_VERSION
from .work import DTYPES, MODES, PHASES

__all__ = ["read_document"]

SIZES = ("batch", "length", "threads", "repeats")
TIMES = ("low_ms", "median_ms", "high_ms")


def read_document(document: Any, where: str) -> dict[str, Any]:
    """The parts of a profile's JSON, checked.

    Raises:
        ValueError: no profile, one of a newer schema, or a row that no measurement can have made.
    """
    if not isinstance(document, dict) or document.get("schema") != PROFILE_SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"a profile says \"schema\": \"{PROFILE_SCHEMA}\" at {where}: got {found!r}; write one with "
                         "`bodyplan profile cpu --save FILE.json`")
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema_version of a profile is a whole number from 1 at {where}: got {version!r}; measure again")
    if version > PROFILE_VERSION:
        raise ValueError(f"this bodyplan reads profiles up to schema_version {PROFILE_VERSION} at {where}: got {version}, "
                         "which a newer one wrote; update bodyplan, or measure again")
    device = document.get("device")
    if not isinstance(device, dict) or not all(isinstance(device.get(k), str) and device[k] for k in ("kind", "name")):
        raise ValueError(f"a profile names its device's kind and name at {where}: got {device!r}; measure again")
    parts = {name: _rows(document, name, where) for name in ("sessions", "operators", "models", "failures")}
    for name in ("operators", "models"):
        for i, row in enumerate(parts[name]):
            _check_row(row, len(parts["sessions"]), f"{name}[{i}] of {where}", name)
    for i, row in enumerate(parts["failures"]):
        _check_session(row, len(parts["sessions"]), f"failures[{i}] of {where}")
    return {"device": device, **parts}


def _rows(document: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    rows = document.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} of a profile are a list of objects at {where}: got {type(rows).__name__}; measure again")
    return rows


def _check_row(row: Mapping[str, Any], sessions: int, where: str, part: str) -> None:
    _check_session(row, sessions, where)
    label = "operator" if part == "operators" else "hash"
    if not isinstance(row.get(label), str) or not row[label]:
        raise ValueError(f"a row has its {label} at {where}: got {row.get(label)!r}; take the row out, or measure again")
    for name in SIZES + (("width",) if part == "operators" else ()):
        value = row.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1 at {where}: got {value!r}; take the row out, or "
                             "measure again")
    for name, allowed in (("phase", PHASES), ("mode", MODES), ("dtype", tuple(DTYPES))):
        if row.get(name) not in allowed:
            raise ValueError(f"{name} is one of {', '.join(allowed)} at {where}: got {row.get(name)!r}; take the row out, or "
                             "measure again")
    times = [row.get(name) for name in TIMES]
    numbers = [t for t in times if isinstance(t, (int, float)) and not isinstance(t, bool) and math.isfinite(t) and t >= 0]
    if len(numbers) < 3 or not numbers[0] <= numbers[1] <= numbers[2]:
        raise ValueError(f"low_ms, median_ms and high_ms are finite, not negative and in order at {where}: got {times}; take "
                         "the row out, or measure again")


def _check_session(row: Mapping[str, Any], sessions: int, where: str) -> None:
    session = row.get("session")
    if not isinstance(session, int) or isinstance(session, bool) or not 0 <= session < sessions:
        raise ValueError(f"session is the place of one of the {sessions} sessions at {where}: got {session!r}; measure again")
