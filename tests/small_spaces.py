"""Random small spaces with constraints, and what brute force says of them.

The parts are dataclasses of the tests' own, so that anything may stand anywhere. Every constraint comes as a pair: the
declared rule, and a plain function of the resolved values that says what it should mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import bodyplan as bp
from bodyplan.space.choices import Choice, Repeat, Subset, Tied
from bodyplan.space.constraints import count, monotone, total, value, within


@dataclass(frozen=True)
class A:
    x: Any = 1
    y: Any = 2


@dataclass(frozen=True)
class B:
    x: Any = None
    inner: Any = None


@dataclass(frozen=True)
class C:
    left: Any = None
    right: Any = None


Values = dict[str, Any]
Meaning = Callable[[Values], bool]


def random_definition(rng) -> dict[str, Any]:
    """Fields of a space: a width, a body, and something decided after the body."""
    pool: list[Any] = []
    return {"width": bp.choice(*rng.sample([1, 2, 3, 4], rng.randint(1, 3))), "body": _body(rng, pool, 3),
            "late": rng.choice([bp.choice(1, 2, 4), A(x=bp.choice(1, 2)), 3])}


def _body(rng, pool, depth):
    kind = rng.choice(["repeat", "repeat", "repeat", "tuple", "record", "choice", "subset"])
    if depth <= 0 or kind == "record":
        return _record(rng, pool, depth)
    if kind == "repeat":
        times = rng.choice([bp.integer(0, 2), bp.integer(1, 3), bp.choice(1, 3), 2, bp.choice(2, 0)])
        return bp.repeat(_maybe_tied(rng, pool, _body(rng, pool, depth - 2)), times=_maybe_tied(rng, pool, times, 0.2))
    parts = [_maybe_tied(rng, pool, _body(rng, pool, depth - 2)) for _ in range(rng.randint(1, 2))]
    if kind == "tuple":
        return tuple(parts)
    distinct = [part for i, part in enumerate(parts) if part not in parts[:i]]
    if kind == "subset":
        return bp.subset(*distinct, size=(rng.randint(0, 1), len(distinct)))
    return bp.choice(*distinct, A(x=7, y=rng.choice([0, 1])))


def _record(rng, pool, depth):
    kind = rng.choice("AABC" if depth > 0 else "AAB")
    if kind == "A":
        return A(x=_number(rng, pool), y=_number(rng, pool))
    if kind == "B":
        inner = _record(rng, pool, depth - 1) if depth > 0 and rng.random() < 0.5 else _number(rng, pool)
        return B(x=_number(rng, pool), inner=inner)
    return C(left=_record(rng, pool, depth - 1), right=rng.choice([None, _record(rng, pool, 0)]))


def _number(rng, pool):
    item = rng.choice([1, 2, bp.choice(1, 2), bp.choice(1, 3), bp.integer(1, 2), bp.choice(None, 2)])
    return _maybe_tied(rng, pool, item, 0.25)


def _maybe_tied(rng, pool, item, chance=0.3):
    """An item as it is, tied, or a tied one of the same sort used again."""
    if rng.random() > chance:
        return item
    same = [t for t in pool if _sort(t.item) == _sort(item)]
    if same and rng.random() < 0.6:
        return rng.choice(same)
    pool.append(bp.tied(item))
    return pool[-1]


def _sort(item) -> str:
    if isinstance(item, Repeat) or is_dataclass(item) and isinstance(item, (A, B, C)) or isinstance(item, (tuple, Subset)):
        return "part"
    if isinstance(item, Choice) and any(is_dataclass(c) for c in item.candidates):
        return "part"
    counts = getattr(item, "values", None) or getattr(item, "candidates", (item,))
    return "count" if all(isinstance(v, int) for v in counts) else "number"


def size_of(item) -> int:
    """A bound on the number of genomes, ties ignored."""
    if isinstance(item, Tied):
        return size_of(item.item)
    if isinstance(item, Choice):
        return sum(size_of(c) for c in item.candidates)
    if isinstance(item, Subset):
        return math.prod(1 + size_of(c) for c in item.candidates)
    if isinstance(item, Repeat):
        counts = item.times.item if isinstance(item.times, Tied) else item.times
        counts = getattr(counts, "values", None) or getattr(counts, "candidates", None) or (counts,)
        return sum(size_of(item.item) ** n for n in counts)
    if isinstance(item, tuple):
        return math.prod(map(size_of, item))
    if hasattr(item, "values"):
        return len(item.values)
    if is_dataclass(item):
        return math.prod(size_of(getattr(item, f.name)) for f in fields(item))
    return 1


# -- brute force ---------------------------------------------------------------------------------------------------


def assignments(nodes) -> Iterator[tuple[dict[str, Any], Values]]:
    """Every genome and what it resolves to, by trying all answers to all questions, the last turning fastest."""
    turns: list[list[int]] = []
    while True:
        made: dict[str, Any] = {}
        asked: list[Any] = []

        def decide(gene, made=made, asked=asked):
            if gene.path not in made:
                if len(asked) == len(turns):
                    turns.append([0, len(gene.options)])
                made[gene.path] = gene.options[turns[len(asked)][0]]
                asked.append(gene)
            return made[gene.path]

        yield made, {name: node.resolve(decide)[0] for name, node in nodes.items()}
        while turns and turns[-1][0] + 1 == turns[-1][1]:
            turns.pop()
        if not turns:
            return
        turns[-1][0] += 1


def parts(values: Any, cls: type) -> list[Any]:
    """Every instance of a class, inner ones before the one they are in, in the order they stand."""
    if isinstance(values, dict):
        return list(itertools.chain.from_iterable(parts(v, cls) for v in values.values()))
    if isinstance(values, (tuple, list)):
        return list(itertools.chain.from_iterable(parts(v, cls) for v in values))
    if not is_dataclass(values):
        return []
    inside = [p for f in fields(values) for p in parts(getattr(values, f.name), cls)]
    return [*inside, values] if isinstance(values, cls) else inside


def number(item) -> float:
    return math.inf if item is None else item


# -- constraints, each with its meaning ----------------------------------------------------------------------------


def random_rules(rng, definition, how_many) -> list[tuple[Any, Meaning]]:
    """Declared constraints that fit the definition."""
    makers = [_around, _width, _count, _count, _total, _monotone, _within, _within_width, _within_late, _compared, _either]
    present = [cls for cls in (A, B) if _holds(definition, cls)]
    if not present:
        return []
    made = [rng.choice(makers)(rng, rng.choice(present), definition) for _ in range(how_many)]
    return [pair for pair in made if pair is not None]


def _holds(item, cls) -> bool:
    if isinstance(item, dict):
        return any(_holds(part, cls) for part in item.values())
    if isinstance(item, (tuple, list)):
        return any(_holds(part, cls) for part in item)
    if isinstance(item, cls):
        return True
    if is_dataclass(item):
        return any(_holds(getattr(item, f.name), cls) for f in fields(item))
    return False


def _width(rng, cls, definition):
    limit = rng.choice([2, 3])
    return value("width") <= limit, lambda v: v["width"] <= limit


def _count(rng, cls, definition):
    limit, least = rng.choice([0, 1, 2]), rng.random() < 0.4
    x = rng.choice([1, 2, None])
    rule = count(cls, x=x)
    if least:
        return rule >= limit, lambda v: sum(p.x == x for p in parts(v, cls)) >= limit
    return rule <= limit, lambda v: sum(p.x == x for p in parts(v, cls)) <= limit


def _total(rng, cls, definition):
    limit, op = rng.choice([2, 3, 4, 6]), rng.choice(["<=", ">", "==", "!="])
    rule = total("x", of=cls)
    sums = lambda v: sum(number(p.x) for p in parts(v, cls))  # noqa: E731
    return {"<=": (rule <= limit, lambda v: sums(v) <= limit), ">": (limit < rule, lambda v: sums(v) > limit),
            "==": (rule == limit, lambda v: sums(v) == limit), "!=": (rule != limit, lambda v: sums(v) != limit)}[op]


def _monotone(rng, cls, definition):
    direction, strict = rng.choice(["decreasing", "increasing"]), rng.random() < 0.3

    def holds(v):
        xs = [number(p.x) for p in parts(v, cls)]
        if direction == "increasing":
            xs = [-x for x in xs]
        return all(a > b or a == b and not strict for a, b in zip(xs, xs[1:], strict=False))

    return monotone("x", direction, of=cls, strict=strict), holds


def _around(rng, cls, definition):
    limit = rng.choice([3, 5, 8])
    if rng.random() < 0.5:
        return (count(cls, lambda p: p.x < p.width) <= limit // 3,
                lambda v: sum(number(p.x) < v["width"] for p in parts(v, cls)) <= limit // 3)
    return (total(lambda p: p.x * p.width, of=cls) <= limit,
            lambda v: sum(number(p.x) * v["width"] for p in parts(v, cls)) <= limit)


def _within(rng, cls, definition):
    if cls is not A:
        return None
    limit = rng.choice([2, 3, 4])
    return (within(A, lambda a: a.x * a.y <= limit),
            lambda v: all(number(p.x) * number(p.y) <= limit for p in parts(v, A)))


def _within_width(rng, cls, definition):
    return (within(cls, lambda p: p.x <= value("width") + 1),
            lambda v: all(number(p.x) <= v["width"] + 1 for p in parts(v, cls)))


def _within_late(rng, cls, definition):
    if not isinstance(definition["late"], Choice):
        return None
    return (within(cls, lambda p: (p.x != value("late")) | (value("width") < 3)),
            lambda v: all(p.x != v["late"] or v["width"] < 3 for p in parts(v, cls)))


def _compared(rng, cls, definition):
    shift = rng.choice([-1, 0, 1])
    return (count(A, y=2) + shift <= count(cls, lambda p: p.x >= 2) * value("width"),
            lambda v: sum(p.y == 2 for p in parts(v, A)) + shift
            <= sum(number(p.x) >= 2 for p in parts(v, cls)) * v["width"]) if _holds(definition, A) else None


def _either(rng, cls, definition):
    return ((count(cls) >= 2) | (value("width") == 1) & ~(count(cls, x=1) == 1),
            lambda v: len(parts(v, cls)) >= 2 or v["width"] == 1 and sum(p.x == 1 for p in parts(v, cls)) != 1)
