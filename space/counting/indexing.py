"""Genomes by number: the fixed order of a space, both ways, without walking through it.

The order is that of the decisions in a genome, each over its options as they stand, the first decision turning slowest.
Numbers follow from the counts (ranking and unranking: Nijenhuis and Wilf, Combinatorial Algorithms, 1978).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import accumulate

from ..compiled.spec import Gene
from ..genome import Decision
from .counting import Counter, NotCountable
from .places import Place
from .walking import Junction

__all__ = ["Pick", "in_order", "rank", "unrank", "walk_through"]

MAX_REMEMBERED = 10_000

Pick = Callable[[Gene, Sequence[int] | None], int]      # a gene, the options that can be completed (None: all) -> one
Draw = Callable[[Gene], Decision]                       # a continuous gene -> the decision


def rank(counter: Counter, decisions: Mapping[str, Decision]) -> int:
    """The number of a genome among those of the space. Raises KeyError when it is not among them."""
    return _rank(counter, counter.walk.root, decisions)


def _rank(counter: Counter, block: Place, decisions: Mapping[str, Decision]) -> int:
    if block.kind == "leaf" and block.is_free:
        return block.option_of(decisions[_gene(block).path])
    step, number = counter.walk.start(block), 0
    while step is not None:
        within = 0
        for inner in step.blocks:
            within = within * counter.weight(inner) + _rank(counter, inner, decisions)
        junction = step.junction
        if junction is None:
            return number + within
        option = junction.place.option_of(decisions[_gene(junction.place).path])
        before = _before(counter, junction)
        if before[option] == before[option + 1]:
            break
        number += within * before[-1] + before[option]
        step = counter.walk.after(junction, option)
    raise KeyError("the decisions break a constraint")


def unrank(counter: Counter, number: int) -> dict[str, Decision]:
    """The decisions of the genome with a number from 0 up to the size of the space."""
    made: dict[str, Decision] = {}
    _unrank(counter, counter.walk.root, number, made)
    return made


def _unrank(counter: Counter, block: Place, number: int, made: dict[str, Decision]) -> None:
    if block.kind == "leaf" and block.is_free:
        gene = _gene(block)
        made[gene.path] = gene.options[number]                                        # type: ignore[index]
        return
    step = counter.walk.start(block)
    while True:
        assert step is not None
        before = _before(counter, step.junction) if step.junction else [0, 1]
        within, number = divmod(number, before[-1])
        shares = []
        for inner in reversed(step.blocks):
            within, share = divmod(within, counter.weight(inner))
            shares.append(share)
        for inner, share in zip(step.blocks, reversed(shares), strict=True):
            _unrank(counter, inner, share, made)
        if step.junction is None:
            return
        option = bisect_right(before, number) - 1
        gene = _gene(step.junction.place)
        made[gene.path] = gene.options[option]                                        # type: ignore[index]
        number -= before[option]
        step = counter.walk.after(step.junction, option)


def _before(counter: Counter, junction: Junction) -> list[int]:
    """How many genomes come before each option of a junction, and how many there are in all."""
    known: dict[Hashable, list[int]] = counter.before
    if junction.key not in known:
        if len(known) > MAX_REMEMBERED:
            known.clear()
        known[junction.key] = list(accumulate((counter.count(step) for step in counter.walk.steps(junction)), initial=0))
    return known[junction.key]


def _gene(place: Place) -> Gene:
    assert place.gene is not None
    return place.gene


def walk_through(counter: Counter, pick: Pick, draw: Draw) -> dict[str, Decision]:
    """Decide everything: with `pick`, which is offered only options that can be completed, and with `draw`."""
    made: dict[str, Decision] = {}
    _walk(counter, counter.walk.root, pick, draw, made)
    return made


def _walk(counter: Counter, block: Place, pick: Pick, draw: Draw, made: dict[str, Decision]) -> None:
    walk, step = counter.walk, counter.walk.start(block)
    while step is not None:
        for inner in step.blocks:
            if inner.is_free:
                _walk_free(inner, pick, draw, made)
            else:
                _walk(counter, inner, pick, draw, made)
        junction = step.junction
        if junction is None:
            return
        gene = _gene(junction.place)
        if gene.options is None:
            option, made[gene.path] = 0, draw(gene)
        else:
            option = pick(gene, counter.options(junction))
            made[gene.path] = gene.options[option]
        step = walk.after(junction, option)
    raise AssertionError("a walk is offered only what can be completed")


def _walk_free(block: Place, pick: Pick, draw: Draw, made: dict[str, Decision]) -> None:
    option, gene = 0, block.gene
    if gene is not None:
        if gene.options is None:
            made[gene.path] = draw(gene)
            return
        option = pick(gene, None)
        made[gene.path] = gene.options[option]
    for inner in block.branch(option):
        _walk_free(inner, pick, draw, made)


def _refuse(gene: Gene) -> Decision:
    raise NotCountable(f"a continuous gene cannot be enumerated: {gene.path}; give real(...) a step")


def in_order(counter: Counter) -> Iterator[dict[str, Decision]]:
    """The decisions of every genome, in order. Raises NotCountable for a continuous gene."""
    turns: list[list[int]] = []                               # per decision: which of how many
    while True:
        place = 0

        def pick(gene: Gene, options: Sequence[int] | None) -> int:
            nonlocal place
            if place == len(turns):
                turns.append([0, len(options if options is not None else gene.options or ())])
            place += 1
            turn = turns[place - 1][0]
            return turn if options is None else options[turn]

        yield walk_through(counter, pick, _refuse)
        while turns and turns[-1][0] + 1 == turns[-1][1]:
            turns.pop()
        if not turns:
            return
        turns[-1][0] += 1
