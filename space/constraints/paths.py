"""Finding the places that a path or a class of a constraint names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..counting.places import Place

__all__ = ["field_of", "has_field", "parts_named", "unknown_field", "value_at"]

Token = str | int | tuple[str, int | None]      # a field, `.3`, and `[3]` or `[*]`
PATTERN = re.compile(r"\.?(?:\[(\d+|\*)\]|([^.\[\]]+))")
CONTAINERS = ("sequence", "repeat", "subset")


def tokens_of(path: str, text: str) -> list[Token]:
    """The steps of a path. Raises ValueError for a path that is not written as one."""
    found: list[Token] = []
    end = 0
    for match in PATTERN.finditer(path):
        if match.start() != end:
            break
        index, name = match.groups()
        end = match.end()
        found.append(("[]", None if index == "*" else int(index)) if index else int(name) if name.isdigit() else name)
    if end != len(path) or not found:
        raise ValueError(f"a path is fields and indices such as body[*].mixer.heads: got {path!r} in `{text}`")
    return found


def value_at(root: Place, path: str, text: str) -> list[Place]:
    """The places of which one holds the value at `path`. Raises ValueError where there is none, or no plain value."""
    tokens = tokens_of(path, text)
    found = list(_match(root, tokens))
    if not found:
        raise ValueError(_unmatched(root, tokens, path, text))
    return list(_plain(found, tokens[-1] == "times", path, text))


def field_of(part: Place, names: tuple[str, ...], text: str) -> list[Place]:
    """The places of which one holds the plain value of a part's field; none where the part has no such field."""
    return list(_plain(_match(part, list(names)), names[-1] == "times", f"{part.path}.{'.'.join(names)}", text))


def parts_named(root: Place, of: str, text: str) -> list[Place]:
    """The dataclasses in the space of a class, or at a path. Raises ValueError when there is none."""
    if of.split(".")[0].split("[")[0] in root.parts:
        tokens = tokens_of(of, text)
        places = list(_match(root, tokens))
        if not places:
            raise ValueError(_unmatched(root, tokens, of, text))
        found = [part for place in places for part in _records(place)]
        if not found:
            raise ValueError(f"parts are dataclasses such as operators and blocks: {of} is a plain value in `{text}`; "
                             f"use value({of!r})")
        return found
    found = [place for place in root.walk() if place.cls is not None and _is_a(place.cls, of)]
    if not found:
        known = sorted({place.cls.__name__ for place in root.walk() if place.cls is not None} | set(root.parts))
        raise ValueError(f"a constraint names parts that the space has: got {of!r} in `{text}`{_nearest(of, known)} "
                         f"The space has {', '.join(known)}")
    return found


def has_field(cls: type, names: tuple[str, ...]) -> bool:
    """Whether a class may have the field, so that its absence is a choice and not a slip of the pen."""
    return names[0] in getattr(cls, "__dataclass_fields__", {}) or hasattr(cls, names[0])


def unknown_field(parts: Iterable[Place], names: tuple[str, ...], text: str) -> str:
    """The text for a field that none of the parts has."""
    parts = list(parts)
    known = sorted({name for part in parts for name in part.parts})
    of = sorted({part.cls.__name__ for part in parts if part.cls is not None})
    return (f"a constraint reads fields that its parts have: got {'.'.join(names)!r} of {', '.join(of)} in `{text}`"
            f"{_nearest(names[0], known)} Fields are {', '.join(known)}")


def _is_a(cls: type, name: str) -> bool:
    return any(base.__name__ == name for base in cls.__mro__)


def _match(place: Place, tokens: list[Token]) -> Iterator[Place]:
    """Every place that the path leads to, whichever candidates are chosen on the way."""
    if not tokens:
        yield place
        return
    token, rest = tokens[0], tokens[1:]
    if token == "times" and (place.kind == "repeat" or getattr(place.node, "is_repeat", False)):
        yield place
    elif isinstance(token, tuple) and _holds_items(place):
        found = list(_elements(place))
        for item in found if token[1] is None else found[token[1]:token[1] + 1]:
            yield from _match(item, rest)
    elif place.kind == "choice":
        if isinstance(token, int):
            for candidate in place.candidates[token:token + 1]:
                yield from _match(candidate, rest)
        else:
            for candidate in place.candidates:
                yield from _match(candidate, tokens)
    elif isinstance(token, int):
        for item in (place.items or place.candidates)[token:token + 1]:
            yield from _match(item, rest)
    elif isinstance(token, str) and (part := _part(place, token)) is not None:
        yield from _match(part, rest)


def _part(place: Place, name: str) -> Place | None:
    """The field of a dataclass; also a plain attribute of its class, or of the whole where nothing in it is decided."""
    if place.cls is None and place.path:
        return None
    if name not in place.parts and place.cls is not None:
        attribute = getattr(place.values[0] if place.values else place.cls, name, place)
        if attribute is None or isinstance(attribute, (bool, int, float, str)):
            place.parts[name] = made = Place("plain", f"{place.path}.{name}")
            made.values = (attribute,)
    return place.parts.get(name)


def _holds_items(place: Place) -> bool:
    return place.kind in CONTAINERS or place.kind == "choice" and any(_holds_items(c) for c in place.candidates)


def _elements(place: Place) -> Iterator[Place]:
    """The items of a sequence, repeat or subset; those of one inside another are spliced in, as they are when it is run."""
    for item in place.items or place.candidates or (place,):
        yield from _elements(item) if _holds_items(item) else (item,)


def _plain(found: Iterable[Place], times: bool, path: str, text: str) -> Iterator[Place]:
    for place in found:
        if place.kind in ("plain", "leaf") or times and place.kind in ("repeat", "subset"):
            yield place
        elif place.kind == "choice":
            yield from _plain(place.candidates, times, path, text)
        else:
            some = next(iter(place.parts), None)
            raise ValueError(f"a constraint reads plain values: {path} holds {_kind(place)} in `{text}`; "
                             + (f"read a field of it, such as {path}.{some}" if some else "name one of its items")
                             + (f", or {path}.times" if place.kind == "repeat" else ""))


def _kind(place: Place) -> str:
    return f"a whole {place.cls.__name__}" if place.cls is not None else f"a {place.kind} of several parts"


def _records(place: Place) -> Iterator[Place]:
    if place.cls is not None:
        yield place
    elif place.kind == "choice":
        for candidate in place.candidates:
            yield from _records(candidate)


def _unmatched(root: Place, tokens: list[Token], path: str, text: str) -> str:
    length = next(n for n in range(len(tokens) - 1, -1, -1) if any(True for _ in _match(root, tokens[:n])))
    names = sorted({name for place in _match(root, tokens[:length]) for name in _names(place)})
    place = _written(tokens[:length]) or "the space"
    return (f"a path of a constraint names a place of the space: {path!r} in `{text}` finds nothing at "
            f"{_written(tokens[length:length + 1])!r}{_nearest(str(tokens[length]), names)} {place} has {', '.join(names)}")


def _names(place: Place) -> Iterator[str]:
    """What may follow a place in a path."""
    yield from place.parts
    if place.kind == "repeat":
        yield "times"
    if _holds_items(place):
        yield "[*]"
    for candidate in place.candidates if place.kind == "choice" else ():
        yield from _names(candidate)


def _written(tokens: Iterable[Any]) -> str:
    texts = (f"[{'*' if t[1] is None else t[1]}]" if isinstance(t, tuple) else f".{t}" for t in tokens)
    return "".join(texts).lstrip(".")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."
