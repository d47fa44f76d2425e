"""Shallow subnets first, then deeper ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...space.compiled.spec import ChoiceNode, Gene, Leaf, RepeatNode
from ...space.elastic.layout import walk
from ...space.genome import Decision
from ...space.operator import Source
from .base import TrainingStrategy, Visit, check_count
from .draw import draw, kind_of, sizes_of
from .layers import layer_groups, named_tensors

if TYPE_CHECKING:
    from ...space.elastic.supernet import Supernet
    from ...space.space import Space

__all__ = ["ProgressiveDepth"]


@dataclass(frozen=True)
class ProgressiveDepth(TrainingStrategy):
    """Depths open from the shallowest to the deepest as training goes on (after Apollo, Pan et al., 2024).

    Training is cut into equal stages; each opens more of the depths, the last all. Among the open ones low depths
    are drawn more often (of n, the i-th lowest with weight n - i + 1), as in the paper's low-value-prioritised
    sampling, which makes the early steps cheap. When a stage opens layers, all layers up to there start as an
    interpolation of those trained so far: layer i of m takes the weights of layer floor(i n / m) of n. Not done:
    the paper also lets its few layers stand for more by running them several times; here that is the space's
    `Loop`. All other decisions are random, siblings dealt.

    Args:
        stages: how many times depths open.
        interpolate: start new layers from trained ones; otherwise they keep their own initial weights.
    """

    stages: int = 3
    interpolate: bool = True
    name: ClassVar[str] = "progressive_depth"
    source: ClassVar[Source] = Source("Preparing Lessons for Progressive Training on Language Models", 2024,
                                      options=("S182",))

    def __post_init__(self) -> None:
        check_count("stages", self.stages)

    def visits(self, space: Space, step: int, steps: int, seed: int) -> Iterator[Visit]:
        stage = self._stage(step, steps)

        def choose(gene: Gene, ordered: tuple[Decision, ...], rng: random.Random) -> Decision:
            if kind_of(gene) != "depth":
                return gene.sample(rng)
            options = self._open(ordered, stage)
            return rng.choices(options, range(len(options), 0, -1))[0]

        yield Visit(draw(space, step, seed, choose))

    def rewrite(self, net: Supernet, step: int, steps: int) -> None:
        """At the first step of a stage, spread the trained layers of every repeat over those that open."""
        if not self.interpolate or not 0 < step < steps or self._stage(step, steps) == self._stage(step - 1, steps):
            return
        groups = layer_groups(named_tensors(net)).values()
        for node in _repeats(net.space):
            before, now = (_deepest(net.space, node, self, self._stage(at, steps)) for at in (step - 1, step))
            for group in groups:
                if group.prefix == node.path and now > before > 0:
                    _spread(group.members, before, now)

    def _stage(self, step: int, steps: int) -> int:
        return min(step * self.stages // steps, self.stages - 1)

    def _open(self, ordered: tuple[Decision, ...], stage: int) -> tuple[Decision, ...]:
        """The depths of a stage: a growing share of all, rounded up."""
        return ordered[:math.ceil(len(ordered) * (stage + 1) / self.stages)]


def _repeats(space: Space) -> list[RepeatNode]:
    """Every repeat of the space once."""
    nodes = (node for name in space.definition for node in walk(space.node(name)) if isinstance(node, RepeatNode))
    return list({node.path: node for node in nodes}.values())


def _deepest(space: Space, node: RepeatNode, strategy: ProgressiveDepth, stage: int) -> int:
    """How many layers of a repeat run at the deepest that is open in a stage."""
    if not isinstance(node.times, (Leaf, ChoiceNode)):
        return max(node.counts())
    decision = strategy._open(sizes_of(space).ordered[node.times.gene.path], stage)[-1]
    found: Any = decision
    if isinstance(node.times, ChoiceNode):
        found = getattr(node.times.candidates[found], "value", 0)
    return int(found)


@torch.no_grad()
def _spread(members: dict[int, torch.Tensor], before: int, now: int) -> None:
    """Give layer i of `now` the weights of layer i * before // now of `before`, as far as there are such tensors."""
    old = {number: tensor.clone() for number, tensor in members.items() if number < before}
    for number in range(now):
        source = number * before // now
        if number in members and source in old:
            members[number].copy_(old[source])
