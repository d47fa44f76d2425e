"""Which subnets one supernet step visits, and what each of them learns from.

A strategy is a function `(space, step, seed) -> visits`: pure, so that a resumed training visits the same
subnets. The trainer runs the visits of a step in order on one batch, adds their gradients and moves the
weights once.

Candidates that are dataclasses (attention or Mamba-2, once or looped) differ in structure, and operators among
them share no weights: what one learns is lost on its siblings. Plain values (heads, ratio, depth) are sizes of
one tensor. Hence siblings are dealt like cards, every one exactly once per round (fairness as in FairNAS, Chu et
al., 2019), and sizes are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ..registry import Registry
from ..space.genome import Decision
from ..space.layout import walk
from ..space.spec import ChoiceNode, Fixed, Gene, Node

if TYPE_CHECKING:
    from ..space.architecture import Architecture
    from ..space.space import Space

__all__ = ["Visit", "fair", "sampling_strategies", "sandwich", "sibling_genes", "single_path"]

FIELDS = ("embed", "width", "body", "recursion", "head", "norm")
TRIES = 50


@dataclass(frozen=True)
class Visit:
    """One subnet of a step.

    role: "task" learns the task; "teacher" learns the task and leaves its logits to the students after it;
    "student" learns the teacher's logits, which carry no gradient.
    """

    architecture: Architecture
    role: Literal["task", "teacher", "student"] = "task"


Strategy = Callable[["Space", int, int], Iterable[Visit]]
sampling_strategies: Registry[Strategy] = Registry("training strategy")


def single_path(space: Space, step: int, seed: int) -> Iterator[Visit]:
    """One random subnet per step, learning the task (SPOS, Guo et al., 2020), siblings dealt fairly."""
    yield Visit(_draw(space, step, seed, "random"))


def sandwich(space: Space, step: int, seed: int) -> Iterator[Visit]:
    """A large subnet learns the task, a small and a random one learn from it (BigNAS, Yu et al., 2020).

    A space with sibling candidates has no single largest subnet. Each step deals one assignment of siblings;
    at its largest sizes it is the teacher, at its smallest sizes the first student. The second student has an
    assignment and sizes of its own, so a step visits two of the siblings at most places.
    """
    yield Visit(_draw(space, step, seed, "largest"), "teacher")
    yield Visit(_draw(space, step, seed, "smallest"), "student")
    yield Visit(_draw(space, step, seed, "random", deal=1), "student")


def fair(space: Space, step: int, seed: int) -> Iterator[Visit]:
    """Every sibling once per step (strict fairness, FairNAS): as many subnets as the widest choice has."""
    rounds = max((len(gene.options or ()) for gene in sibling_genes(space)), default=1)
    for turn in range(rounds):
        yield Visit(_draw(space, step * rounds + turn, seed, "random"))


for _strategy in (single_path, sandwich, fair):
    sampling_strategies.register(_strategy.__name__, _strategy)


def sibling_genes(space: Space) -> tuple[Gene, ...]:
    """The choices among dataclasses, whose candidates differ in structure and not only in size."""
    return _genes(space)[0]


@lru_cache(maxsize=64)
def _genes(space: Space) -> tuple[tuple[Gene, ...], dict[str, tuple[Decision, ...]]]:
    """The sibling genes, and for every other gene by path its decisions from small to large."""
    choices = {node.gene.path: node for name in FIELDS for node in walk(space.node(name))
               if isinstance(node, ChoiceNode)}
    siblings = {path for path, node in choices.items() if any(_is_structure(c) for c in node.candidates)}
    sizes = {gene.path: _from_small_to_large(gene, choices.get(gene.path))
             for gene in space.genes if gene.path not in siblings}
    return tuple(gene for gene in space.genes if gene.path in siblings), sizes


def _is_structure(node: Node) -> bool:
    return not isinstance(node, Fixed) or is_dataclass(node.value)


def _from_small_to_large(gene: Gene, choice: ChoiceNode | None) -> tuple[Decision, ...]:
    """Numbers by value, None (no limit) above them, subsets by length, anything else as written."""
    if gene.options is None:
        return gene.low, gene.high
    if choice is not None:
        values = [candidate.value for candidate in choice.candidates if isinstance(candidate, Fixed)]
        return tuple(sorted(gene.options, key=lambda option: _rank(values[option])))    # type: ignore[index]
    return tuple(sorted(gene.options, key=lambda o: (len(o) if isinstance(o, tuple) else o)))


def _rank(value: Any) -> tuple[int, float]:
    if isinstance(value, (int, float)):
        return 0, float(value)
    return (1, 0.0) if value is None else (0, 0.0)


def _draw(space: Space, step: int, seed: int, sizes: Literal["largest", "smallest", "random"],
          deal: int = 0) -> Architecture:
    """Siblings as dealt, sizes as asked; where constraints forbid that, sizes are drawn until allowed."""
    siblings, ordered = _genes(space)
    rng = random.Random(f"{seed}/{step}/{sizes}/{deal}")
    dealt = {gene.path: _deal(gene, step, seed, deal) for gene in siblings}
    for attempt in range(TRIES):
        kind = sizes if attempt == 0 else "random"
        chosen = {gene.path: _size(gene, ordered[gene.path], kind, rng)
                  for gene in space.genes if gene.path not in dealt}
        genome = space.from_complete({**chosen, **dealt})
        if not space.violated(genome):
            return space.architecture(genome)
    return space.architecture(space.sample_genome(rng))


def _deal(gene: Gene, step: int, seed: int, deal: int) -> Decision:
    """Every option once per round of as many steps, in a fresh order per round and gene."""
    options = list(gene.options or ())
    number, turn = divmod(step, len(options))
    random.Random(f"{seed}/{gene.path}/{number}/{deal}").shuffle(options)
    return options[turn]


def _size(gene: Gene, ordered: tuple[Decision, ...], kind: str, rng: random.Random) -> Decision:
    if kind == "random":
        return gene.sample(rng)
    return ordered[-1] if kind == "largest" else ordered[0]
