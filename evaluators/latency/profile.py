"""A profile: what one device was measured to take, as JSON that can be shipped, merged and asked.

    {"schema": "bodyplan.profile", "schema_version": 1,
     "device":    {"kind", "name", "cores", "machine"}: numbers of two of these never mix,
     "sessions":  [{"started", "command", "budget_ms", "fingerprint", "load_after", "reference_ms"}]: the machine at each
                    measuring, and at which speed its times are (see reference.py),
     "operators": [{"operator", "width", "batch", "length", "phase", "dtype", "mode", "threads", "session",
                    "median_ms", "low_ms", "high_ms", "repeats", "outliers", ..., "clock_ms", "speed", "peak_bytes",
                    "energy_mj"}],
     "models":    [{"hash", "genome", "features", and the conditions and numbers of an operator's row}],
     "failures":  [{conditions, "reason"}]}

An operator is named by its label (`operator_label`): its class and the fields that are not at their default. What the
machine could not tell, such as energy, is left out of a row.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...registry import unknown
from ...space.graph import operator_label
from ..devices import device_fingerprint, identity
from .runner import PROFILE_SCHEMA, PROFILE_VERSION
from .stored import read_document

__all__ = ["Answer", "Profile", "shipped_profiles"]

SHIPPED = Path(__file__).parent / "profiles"
CONDITIONS = ("width", "batch", "phase", "dtype", "mode", "threads")
LISTS = ("sessions", "operators", "models", "failures")
SPREAD = 0.5          # by which the exponent of growth with the tokens may be off beyond what was measured


class Answer(NamedTuple):
    """Milliseconds from a profile with a 95 % interval; `note` says how they were come by.

    interpolated: the length lies between two measured ones. extrapolated: it lies beyond them, and the interval is
    wide on purpose. noisy: a measurement behind it was made on a machine that was not quiet.
    """

    value: float
    low: float
    high: float
    note: str = ""
    interpolated: bool = False
    extrapolated: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class Profile:
    """Measurements of one device; see the top of this file for the fields.

    Example:
        >>> profile = Profile.load("amd_epyc_2_cores")
        >>> profile.latency("SwiGLU(ratio=2)", width=64, length=128).extrapolated
        False
    """

    device: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]] = ()
    operators: Sequence[Mapping[str, Any]] = ()
    models: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for name in LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Profile:
        """A profile from a file, or one that is shipped, by its name (`shipped_profiles()`).

        Raises:
            ValueError: no such name, or the file is no profile this version reads; the text says what to do.
            FileNotFoundError: no such file.
        """
        path = Path(source)
        if path.suffix != ".json" and not path.exists():
            names = shipped_profiles()
            if str(source) not in names:
                raise ValueError(unknown("profile", str(source), names) + "; a file of your own ends in .json")
            path = SHIPPED / f"{source}.json"
        if not path.is_file():
            raise FileNotFoundError(f"a profile is a JSON file: there is none at {path}; write one with "
                                    f"`bodyplan profile cpu --save {path}`")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"a profile is a JSON file: {path} cannot be read ({error}); it may be cut short: measure "
                             "again") from error
        return cls.from_json(document, str(path))

    @classmethod
    def from_json(cls, document: Any, where: str = "the profile") -> Profile:
        """The profile that `to_json` gave. Raises ValueError for anything else, naming the row that is wrong."""
        return cls(**read_document(document, where))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the schema and its version."""
        parts = {name: [dict(row) for row in getattr(self, name)] for name in LISTS}
        return {"schema": PROFILE_SCHEMA, "schema_version": PROFILE_VERSION, "device": dict(self.device), **parts}

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write to a file, at once or not at all; one row a line, so that two versions can be compared.

        Raises:
            ValueError: there is a file already, and it may not be overwritten.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise ValueError(f"a profile overwrites nothing: there is a file at {target}; name another, merge "
                             f"(Profile.load({str(target)!r}).merge(...)), or give overwrite=True")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.write_text(_lines(self.to_json()), encoding="utf-8")
        os.replace(partial, target)
        return target

    def merge(self, *others: Profile) -> Profile:
        """All measurements of these profiles of one device; equal rows once. Where a case was measured in several
        sessions all of them stay, and the latest on a quiet machine answers, or the latest at all; see `compact`.

        Raises:
            ValueError: one is of another device.
        """
        sessions = [dict(one) for one in self.sessions]
        rows = {name: [dict(row) for row in getattr(self, name)] for name in LISTS[1:]}
        for other in others:
            self._check_same(other.device, "profiles of one device merge")
            places = []
            for session in map(dict, other.sessions):
                if session not in sessions:
                    sessions.append(session)
                places.append(sessions.index(session))
            for name, held in rows.items():
                moved = ({**row, "session": places[row["session"]]} for row in getattr(other, name))
                held += [row for row in moved if row not in held]
        return Profile(self.device, sessions, **rows)

    def compact(self) -> Profile:
        """The same answers from fewer rows: of every operator under the same conditions only the row that answers, and the
        sessions that are still needed."""
        kept: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for row in sorted(self.operators, key=self._precedence):
            kept[tuple(row[name] for name in ("operator", "length", *CONDITIONS))] = row
        answering = {id(row) for row in kept.values()}
        rows = {"operators": [row for row in self.operators if id(row) in answering], "models": self.models,
                "failures": self.failures}
        used = sorted({row["session"] for held in rows.values() for row in held})
        moved = {name: [{**row, "session": used.index(row["session"])} for row in held] for name, held in rows.items()}
        return Profile(self.device, [self.sessions[place] for place in used], **moved)

    def check_here(self, device: str = "cpu") -> None:
        """Raise ValueError when this machine's `device` is not what the profile was measured on."""
        self._check_same(identity(device_fingerprint(device)), f"numbers of one device are compared, here with {device!r}")

    def labels(self) -> list[str]:
        """The labels of the operators that were measured, in the order they were."""
        return list(dict.fromkeys(row["operator"] for row in self.operators))

    def latency(self, operator: Any, width: int, batch: int = 1, length: int = 256, phase: str = "prefill",
                dtype: str = "float32", mode: str = "eager", threads: int = 1) -> Answer:
        """Milliseconds of an operator (a config, or its label) under these conditions.

        Between measured lengths a power law joins the neighbours; beyond them the nearest two are carried on, flagged,
        with an interval that allows an exponent of growth half larger or smaller (0 to 3 where one length is known).

        Raises:
            ValueError: the operator, or one of the other conditions, was not measured; the text lists what was.
        """
        label = operator if isinstance(operator, str) else operator_label(operator)
        rows = [row for row in self.operators if row["operator"] == label]
        if not rows:
            raise ValueError(f"{unknown('operator', label, self.labels())} in the profile of {self.device['name']}")
        for name, value in zip(CONDITIONS, (width, batch, phase, dtype, mode, threads), strict=True):
            kept = [row for row in rows if row[name] == value]
            if not kept:
                known = ", ".join(map(str, sorted({row[name] for row in rows})))
                raise ValueError(f"the profile of {self.device['name']} has {label} with {name} {known} only: got {value!r}; "
                                 f"measure it with `bodyplan profile {self.device['kind']}` and merge the two")
            rows = kept
        return self._at_length(rows, length)

    def _at_length(self, rows: Sequence[Mapping[str, Any]], length: int) -> Answer:
        latest: dict[int, Mapping[str, Any]] = {}
        for row in sorted(rows, key=self._precedence):
            latest[row["length"]] = row
        known = sorted(latest)
        points = [latest[n] for n in known]
        if length in latest:
            return _answer(latest[length])
        if not length >= 1:
            raise ValueError(f"length is a number of tokens of at least 1: got {length!r}")
        if known[0] < length < known[-1]:
            place = next(i for i, n in enumerate(known) if n > length)
            return _between(points[place - 1], points[place], length)
        near = points[:2] if length < known[0] else points[-2:]
        return _beyond(near, length, known)

    def _precedence(self, row: Mapping[str, Any]) -> tuple[bool, str]:
        """Of two rows of a case the greater answers: quiet before noisy, then late before early."""
        return not row.get("noisy"), str(self.sessions[row["session"]].get("started", ""))

    def _check_same(self, other: Mapping[str, Any], rule: str) -> None:
        differing = [key for key in ("kind", "name", "cores", "machine") if self.device.get(key) != other.get(key)]
        if differing:
            one, two = (", ".join(f"{key} {device.get(key)}" for key in ("name", *(k for k in differing if k != "name")))
                        for device in (self.device, other))
            raise ValueError(f"{rule}: got {one} and {two}; keep a profile for each device")


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def _answer(row: Mapping[str, Any]) -> Answer:
    noisy = row.get("noisy", "")
    note = f"measured, {row['repeats']} repeats" + (f"; noisy: {noisy}" if noisy else "")
    return Answer(row["median_ms"], row["low_ms"], row["high_ms"], note, noisy=bool(noisy))


def _between(one: Mapping[str, Any], two: Mapping[str, Any], length: int) -> Answer:
    share = math.log(length / one["length"]) / math.log(two["length"] / one["length"])
    value, low, high = (_power(one[name], two[name], share) for name in ("median_ms", "low_ms", "high_ms"))
    return Answer(value, low, high, f"interpolated between {one['length']} and {two['length']} tokens", interpolated=True,
                  noisy=bool(one.get("noisy") or two.get("noisy")))


def _beyond(near: Sequence[Mapping[str, Any]], length: int, known: Sequence[int]) -> Answer:
    """The nearest measurement times a power of the lengths' ratio."""
    first, last = near[0], near[-1]
    end = first if length < known[0] else last
    ratio = length / end["length"]
    least, exponent, most = 0.0, 1.0, 3.0
    if len(near) > 1 and first["median_ms"] > 0 and last["median_ms"] > 0:
        exponent = math.log(last["median_ms"] / first["median_ms"]) / math.log(last["length"] / first["length"])
        least, most = exponent - SPREAD, exponent + SPREAD
    low, high = sorted((ratio ** least, ratio ** most))
    reach = f"{known[0]} to {known[-1]} tokens" if len(known) > 1 else f"{known[0]} tokens"
    return Answer(end["median_ms"] * ratio ** exponent, end["low_ms"] * low, end["high_ms"] * high,
                  f"extrapolated: {length} tokens lie beyond the {reach} that were measured", extrapolated=True,
                  noisy=bool(end.get("noisy")))


def _power(one: float, two: float, share: float) -> float:
    if one > 0 and two > 0:
        return math.exp((1 - share) * math.log(one) + share * math.log(two))
    return float((1 - share) * one + share * two)


def _lines(document: Mapping[str, Any]) -> str:
    """JSON with a row of a list on each line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in value)
            parts.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
