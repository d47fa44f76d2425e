"""The decisions of one candidate: immutable, JSON, torch-free. All that a strategy ever sees."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .stored.versions import GENOME as SCHEMA_VERSION
from .stored.versions import upgraded

__all__ = ["Decision", "Genome", "SCHEMA_VERSION"]

Decision = int | float | tuple[int, ...]


class Genome(Mapping[str, Decision]):
    """Active decisions by path, in the order the space is walked.

    A choice holds its candidate's index, an integer its value, a real its number, a subset its indices. Two genomes are
    equal when their decisions are.
    """

    __slots__ = ("_decisions", "_hash", "_key")

    def __init__(self, decisions: Mapping[str, Decision]):
        self._decisions = dict(decisions)
        self._key: str | None = None
        self._hash: int | None = None

    def __getitem__(self, path: str) -> Decision:
        return self._decisions[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decisions)

    def __len__(self) -> int:
        return len(self._decisions)

    def __contains__(self, path: object) -> bool:
        return path in self._decisions

    def get(self, path: str, default: Any = None) -> Any:
        return self._decisions.get(path, default)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._decisions.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self._decisions == other._decisions

    def __repr__(self) -> str:
        return f"Genome({self._decisions!r})"

    @property
    def key(self) -> str:
        """Canonical JSON text of the decisions; equal genomes have equal keys."""
        if self._key is None:
            self._key = json.dumps(self._decisions, sort_keys=True, separators=(",", ":"))
        return self._key

    def to_json(self) -> dict[str, Any]:
        """A JSON object with `schema_version`; `from_json` gives the same genome back."""
        decisions = {k: list(v) if isinstance(v, tuple) else v for k, v in self._decisions.items()}
        return {"schema_version": SCHEMA_VERSION, "decisions": decisions}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Genome:
        """Read what `to_json` wrote. Raises ValueError for a schema version that is not known here."""
        decisions = upgraded(stored, "genome")["decisions"]
        return cls({k: tuple(v) if isinstance(v, list) else v for k, v in decisions.items()})
