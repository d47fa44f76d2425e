"""The journal of a sweep: one SQLite file, append-only, from which everything else can be rebuilt.

Events carry a kind, a stream and a JSON body; nothing is ever updated or deleted. Kinds and their bodies:

    sweep       the whole definition: objectives, space, seed, strategy, budget, versions (always the first event)
    session     one run or resume began: pid, host, python
    supernet    shared weights trained: steps, seconds, losses, file
    probe       one evaluation made to place the reference point
    reference   the reference point, fixed before the search: point, source
    ask         n, genomes, numbers, new, hashes, labels (and initial: true for the user's own; parents:
                the trials whose weights they start from): proposed candidates
    result      number, state, values, intervals, failure, seconds, seed, worker, extra: a candidate was evaluated
    tell        asks: indices (in the stream's order of asking) whose results the strategy was given
    measured    a front member whose predicted objectives were measured after all: number, state, values, intervals
    twin        the random twin began: trials, expected_seconds
    standalone  a candidate trained on its own: number, state, values, seconds, steps, ...
    fidelity    how inherited scores rank beside standalone ones: tau, Spearman, regret, proxies, ceiling, numbers, steps
    test        a front member measured on the test split
    front       the front at the end: numbers, knee, hypervolume, reference, twin
    export      a candidate was written out as a folder: number, path
    finished    every stage is done

The writer holds an exclusive lock for as long as it lives, so two processes never write one journal; any
number of readers may follow along (write-ahead log).
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BodyplanError
from ..space.genome import Genome
from .lock import FileLock

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "Event", "Journal", "Trial", "check_free", "encode"]

SCHEMA_VERSION = 1
FILE_NAME = "journal.sqlite"
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
                     stream TEXT NOT NULL, body TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal. `time` is seconds since the epoch."""

    id: int
    time: float
    kind: str
    stream: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One candidate and what became of it, as the journal tells it.

    `state` is "running" (asked, no result yet), "complete" or "failed". `values` and `intervals` are empty
    unless complete. `started` and `finished` are seconds since the epoch; `seconds` is the evaluation alone.
    `initial` marks an architecture the user put into the sweep.
    """

    number: int
    genome: Genome
    state: str = "running"
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failure: Mapping[str, str] | None = None
    seconds: float = 0.0
    seed: int | None = None
    stream: str = "search"
    started: float | None = None
    finished: float | None = None
    hash: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    initial: bool = False

    @property
    def predicted(self) -> tuple[str, ...]:
        """The objectives of which only a prediction is known."""
        return tuple(self.extra.get("predicted") or ())

    @property
    def is_screened(self) -> bool:
        """Whether a predictor left it out, untried."""
        return "screened" in self.extra

    @property
    def short(self) -> str:
        """The first eight digits of the architecture's hash."""
        return self.hash[:8]


class Journal:
    """Open with `Journal.create` (a new sweep) or `Journal.open` (an existing one); close it or use it as a
    context.

    Example:
        >>> import tempfile, pathlib
        >>> with Journal.create(pathlib.Path(tempfile.mkdtemp()) / "runs" / "a", {"seed": 0}) as journal:
        ...     _ = journal.append("stage", {"name": "search"})
        ...     [event.kind for event in journal.events()]
        ['sweep', 'stage']
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: FileLock | None):
        self.directory = directory
        self._connection = connection
        self._lock = lock
        self._trials: dict[tuple[str, int], Trial] = {}
        self._folded = 0

    @classmethod
    def create(cls, directory: str | os.PathLike[str], definition: Mapping[str, Any] | None = None) -> Journal:
        """A journal in a new directory, opened for writing; `definition` becomes its first event.

        The directory appears by one rename and already holds the journal, so there is no moment at which a
        crash leaves a sweep directory without one. Raises BodyplanError when the directory exists and is not
        empty.
        """
        final = Path(directory).resolve()
        check_free(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.parent / f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        try:
            _write_first(draft / FILE_NAME, definition or {})
            draft.rename(final)
        except OSError as error:
            for left in draft.glob("*"):
                left.unlink()
            draft.rmdir()
            raise BodyplanError(f"the sweep directory could not be made at {final}: {error}") from error
        return cls.open(final, write=True)

    @classmethod
    def open(cls, directory: str | os.PathLike[str], write: bool = False) -> Journal:
        """The journal of an existing sweep, for reading unless `write`.

        Raises BodyplanError when there is none, when its schema is newer than this version reads, or, for
        writing, when another process is writing it.
        """
        where = Path(directory).resolve()
        path = where / FILE_NAME
        if not path.is_file():
            raise BodyplanError(f"a sweep directory holds {FILE_NAME}: {where} has none; start the sweep without "
                                "resume, or name the directory of an earlier sweep")
        lock = _lock(where) if write else None
        try:
            connection = _connect(path) if write else _connect_for_reading(path)
            _check_schema(connection, path)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(where, connection, lock)

    @property
    def writable(self) -> bool:
        return self._lock is not None

    def append(self, kind: str, body: Mapping[str, Any], stream: str = "search") -> int:
        """Write one event, committed when this returns; answers its id.

        Numbers that are not finite become null, numpy scalars and arrays become plain numbers and lists.
        """
        if not self.writable:
            raise BodyplanError(f"the journal in {self.directory} is open for reading; open it with write=True")
        row = (time.time(), kind, stream, encode(body))
        cursor = self._connection.execute("INSERT INTO events (time, kind, stream, body) VALUES (?, ?, ?, ?)", row)
        return int(cursor.lastrowid or 0)

    def events(self, kind: str | None = None, stream: str | None = None, after: int = 0) -> Iterator[Event]:
        """Events in the order they were written, of one kind or stream if named, with id above `after`."""
        query = "SELECT id, time, kind, stream, body FROM events WHERE id > ?"
        values: list[Any] = [after]
        for column, wanted in (("kind", kind), ("stream", stream)):
            if wanted is not None:
                query += f" AND {column} = ?"
                values.append(wanted)
        for row in self._connection.execute(query + " ORDER BY id", values):
            yield _event(row)

    def last(self, kind: str, stream: str | None = None) -> Event | None:
        """The newest event of a kind, or None."""
        query, values = "SELECT id, time, kind, stream, body FROM events WHERE kind = ?", [kind]
        if stream is not None:
            query, values = query + " AND stream = ?", [kind, stream]
        row = self._connection.execute(query + " ORDER BY id DESC LIMIT 1", values).fetchone()
        return None if row is None else _event(row)

    @property
    def definition(self) -> dict[str, Any]:
        """The body of the "sweep" event: everything a view needs to label the trials."""
        event = next(self.events("sweep"), None)
        return event.body if event else {}

    def trials(self, stream: str | None = None) -> list[Trial]:
        """Every trial by number, of both streams ("search" and "twin") or of one; running ones included.

        Later calls read only what was written since the one before.
        """
        for event in self.events(after=self._folded):
            self._fold(event)
            self._folded = event.id
        chosen = (trial for trial in self._trials.values() if stream in (None, trial.stream))
        return sorted(chosen, key=lambda trial: trial.number)

    def _fold(self, event: Event) -> None:
        if event.kind == "ask":
            for trial in _asked(event):
                self._trials.setdefault((event.stream, trial.number), trial)
        elif event.kind == "result":
            key = (event.stream, event.body["number"])
            self._trials[key] = _finished(self._trials[key], event)
        elif event.kind == "measured" and event.body["state"] == "complete":
            key = (event.stream, event.body["number"])
            self._trials[key] = _measured(self._trials[key], event.body)

    def close(self) -> None:
        """Close the file and let another process write. Harmless when closed already."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _event(row: Sequence[Any]) -> Event:
    number, when, kind, stream, body = row
    return Event(number, when, kind, stream, json.loads(body))


def encode(body: Mapping[str, Any]) -> str:
    """Compact JSON of an event body; numbers that are not finite are written as null."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        return json.dumps(_finite(body), allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    for method in ("to_json", "tolist", "item"):
        if hasattr(value, method):
            return _finite(getattr(value, method)())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"the journal holds JSON: got {type(value).__name__} {value!r}; convert it first")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _asked(event: Event) -> Iterator[Trial]:
    body = event.body
    for index, number in enumerate(body["numbers"]):
        if body["new"][index]:
            yield Trial(number, Genome.from_json(body["genomes"][index]), stream=event.stream, started=event.time,
                        hash=body["hashes"][index], labels=body["labels"][index],
                        initial=body.get("initial", False))


def _finished(trial: Trial, event: Event) -> Trial:
    body = event.body
    intervals = {name: (low, high) for name, (low, high) in (body.get("intervals") or {}).items()}
    return replace(trial, state=body["state"], values=body.get("values") or {}, intervals=intervals,
                   failure=body.get("failure"), seconds=body.get("seconds") or 0.0, seed=body.get("seed"),
                   finished=event.time, extra=body.get("extra") or {})


def _measured(trial: Trial, body: Mapping[str, Any]) -> Trial:
    """The trial with what was measured in place of what was predicted."""
    extra = {**trial.extra, "notes": {**trial.extra.get("notes", {}), **body["extra"].get("notes", {})}}
    extra["guesses"] = {**extra.get("guesses", {}), **{name: [trial.values[name], *trial.intervals[name]]
                                                       for name in body["values"] if name in trial.intervals}}
    extra["predicted"] = [name for name in extra.get("predicted", ()) if name not in body["values"]]
    intervals = {**trial.intervals, **{name: (low, high) for name, (low, high) in body["intervals"].items()}}
    return replace(trial, values={**trial.values, **body["values"]}, intervals=intervals, extra=extra)


def check_free(final: Path) -> None:
    """Raise BodyplanError unless a new sweep may take this directory: it does not exist, or is empty."""
    if (final / FILE_NAME).exists():
        raise BodyplanError(f"a new sweep needs a directory of its own: {final} already holds one; continue it with "
                            f"run(resume=True) or `bodyplan resume {final}`, or choose another directory")
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise BodyplanError(f"a new sweep needs a directory that does not exist or is empty: {final} holds other "
                            "files; choose another directory")


def _write_first(path: Path, definition: Mapping[str, Any]) -> None:
    connection = _connect(path)
    connection.executescript(_TABLES)
    connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
    connection.execute("INSERT INTO events (time, kind, stream, body) VALUES (?, 'sweep', 'search', ?)",
                       (time.time(), encode(definition)))
    connection.close()  # folds the write-ahead log into the file, so that the rename moves all of it


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:  # a directory nobody may write to: read the file as it stands
        connection.close()
        return sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
    except sqlite3.DatabaseError:     # not SQLite at all: the schema check says so
        pass
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    except sqlite3.DatabaseError as error:
        raise BodyplanError(f"{path} is not a journal of this project: {error}") from error
    if row is None or int(row[0]) > SCHEMA_VERSION:
        found = "none" if row is None else row[0]
        raise BodyplanError(f"this version reads journals up to schema {SCHEMA_VERSION}: {path} has {found}; "
                            "install a newer bodyplan")


def _lock(directory: Path) -> FileLock:
    lock = FileLock(directory / "journal.lock")
    if not lock.acquire():
        raise BodyplanError(f"one process writes a sweep at a time: {directory} is being written by process "
                            f"{lock.holder()}; wait for it or stop it first")
    return lock
