"""Moving layers inside a genome: the canonical form of repeats, and the insert, remove and swap of mutation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from .genome import Decision, Genome
from .plan import Block, Loop, Once
from .spec import ChoiceNode, Fixed, Leaf, Node, RepeatNode

__all__ = ["compact", "edit_layers", "once_aliases"]


def once_aliases(node: Node) -> dict[str, dict[Decision, Decision]]:
    """Candidates of the recursion that mean the same: `Loop(times=1)` without LoRA is `Once()`."""
    if not isinstance(node, ChoiceNode):
        return {}
    plain = [i for i, c in enumerate(node.candidates)
             if isinstance(c, Fixed) and (isinstance(c.value, Once) or
                                          isinstance(c.value, Loop) and c.value.times == 1 and not c.value.lora_rank)]
    return {node.gene.path: {i: plain[0] for i in plain[1:]}} if len(plain) > 1 else {}


def compact(node: RepeatNode, decisions: dict[str, Decision]) -> None:
    """Move layers without sublayers behind the others, and lower the count where the space allows it."""
    if node.times.genes and node.times.genes[0].path not in decisions:
        return                                                     # the repeat itself is inactive
    count = node.times.resolve(lambda gene: decisions[gene.path])[0]
    full = [i for i in range(count) if not _is_empty(node.items[i], decisions)]
    if len(full) == count:
        return
    empty = [i for i in range(count) if i not in full]
    allowed = [c for c in node.counts() if len(full) <= c <= count]
    kept = min(allowed)
    _reorder(node, decisions, (full + empty)[:kept], count)
    _set_count(node, decisions, kept)


def _is_empty(item: Node, decisions: Mapping[str, Decision]) -> bool:
    value, _ = item.resolve(lambda gene: decisions[gene.path])
    return isinstance(value, Block) and value.is_empty


def _reorder(node: RepeatNode, decisions: dict[str, Decision], order: Sequence[int], count: int) -> None:
    """Give position k the decisions that position `order[k]` holds now; drop the positions beyond."""
    held: dict[int, dict[str, Decision]] = {i: {} for i in range(count)}
    for path in list(decisions):
        if path.startswith(node.path + "["):
            index, rest = path[len(node.path) + 1:].split("]", 1)
            if index != "*":
                held[int(index)][rest] = decisions.pop(path)
    for position, source in enumerate(order):
        for rest, decision in held[source].items():
            decisions[f"{node.path}[{position}]{rest}"] = decision


def _set_count(node: RepeatNode, decisions: dict[str, Decision], count: int) -> None:
    if isinstance(node.times, Leaf):
        decisions[node.times.gene.path] = count
    elif isinstance(node.times, ChoiceNode):
        decisions[node.times.gene.path] = node.counts().index(count)


def edit_layers(genome: Genome, node: RepeatNode, rng: random.Random) -> Mapping[str, Decision]:
    """Decisions after inserting, removing or swapping a layer of a repeat; those of an inserted layer are missing."""
    decisions = dict(genome)
    if node.times.genes and node.times.genes[0].path not in decisions:
        return genome
    now = node.times.resolve(lambda gene: decisions[gene.path])[0]
    order = list(range(now))
    moves = ["swap"] if now > 1 else []
    moves += ["insert"] * (now + 1 in node.counts()) + ["remove"] * (now - 1 in node.counts())
    if not moves:
        return genome
    move = rng.choice(moves)
    if move == "swap":
        i, j = rng.sample(order, 2)
        order[i], order[j] = order[j], order[i]
        _reorder(node, decisions, order, now)
    elif move == "remove":
        order.remove(rng.choice(order))
        _reorder(node, decisions, order, now)
        _set_count(node, decisions, now - 1)
    else:
        place = rng.randrange(now + 1)
        _reorder(node, decisions, order, now)
        for i in range(now, place, -1):
            _shift(node, decisions, i - 1, i)
        _set_count(node, decisions, now + 1)
    return decisions


def _shift(node: RepeatNode, decisions: dict[str, Decision], source: int, target: int) -> None:
    prefix = f"{node.path}[{source}]"
    for path in [p for p in decisions if p.startswith(prefix)]:
        decisions[f"{node.path}[{target}]{path[len(prefix):]}"] = decisions.pop(path)
