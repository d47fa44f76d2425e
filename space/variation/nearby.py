"""Which options of one gene lie near another: the steps of local search and of mutation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from ..compiled.spec import Gene
from ..genome import Decision

__all__ = ["adjacent", "near_options"]

FEW = 64                     # up to as many options, every other option is near


def near_options(gene: Gene, now: Decision) -> list[Decision]:
    """The other options of a gene one step of local search away, in a fixed order.

    All others where there are at most 64 options and for choices. Of more numbers: those 1, 2, 4, ... places away. Of more
    subsets: one candidate added, removed or exchanged; where their order counts also two in each other's place. A
    continuous number: a tenth of the range away, and the ends. Every option can be reached from every other.
    """
    if gene.options is None:
        ends = [*adjacent(gene, now, 0.1), gene.low, gene.high]
        return [number for number in dict.fromkeys(ends) if number != now]
    if gene.kind == "choice" or len(gene.options) <= FEW:
        return [option for option in gene.options if option != now]
    if isinstance(now, tuple):
        steps = _order_steps(gene, now) if gene.ordered else _subset_steps(gene, now)
        return [option for option in dict.fromkeys(steps) if option != now and option in gene.index]
    place = gene.index[now]
    jumps = sorted(sign << power for power in range(len(gene.options).bit_length()) for sign in (-1, 1))
    return [gene.options[place + jump] for jump in jumps if 0 <= place + jump < len(gene.options)]


def _subset_steps(gene: Gene, now: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    inside, outside = list(now), [i for i in range(gene.items) if i not in now]
    sizes = sorted({len(option) for option in gene.options or ()})                   # type: ignore[arg-type]
    place = sizes.index(len(now))
    for size in sizes[max(place - 1, 0):place + 2]:
        if size < len(now):
            yield from itertools.combinations(inside, size)
        elif size > len(now):
            for added in itertools.combinations(outside, size - len(now)):
                yield tuple(sorted((*inside, *added)))
    for removed, new in itertools.product(inside, outside):
        yield tuple(sorted((*(i for i in inside if i != removed), new)))


def _order_steps(gene: Gene, now: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    outside = [i for i in range(gene.items) if i not in now]
    for i, j in itertools.combinations(range(len(now)), 2):
        swapped = list(now)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield tuple(swapped)
    for place in range(len(now) + 1):
        yield from ((*now[:place], added, *now[place:]) for added in outside)
        if place < len(now):
            yield (*now[:place], *now[place + 1:])
            yield from ((*now[:place], added, *now[place + 1:]) for added in outside)


def adjacent(gene: Gene, now: Decision, share: float) -> list[Decision]:
    """The next smaller and the next larger option of a gene of numbers; a continuous one moves by `share` of its range."""
    if gene.options is None:
        assert isinstance(now, (int, float))
        moved = (_moved(gene, now, share * sign) for sign in (-1, 1))
        return [number for number in moved if number != now] or [gene.low if now > gene.low else gene.high]
    ladder = sorted(range(len(gene.numbers)), key=gene.numbers.__getitem__)
    place = ladder.index(gene.index[now])
    return [gene.options[ladder[p]] for p in (place - 1, place + 1) if 0 <= p < len(ladder)]


def _moved(gene: Gene, now: float, share: float) -> float:
    if gene.log:
        return gene.rounded(now * math.exp(share * math.log(gene.high / gene.low)))
    return gene.rounded(now + share * (gene.high - gene.low))
