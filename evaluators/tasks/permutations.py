"""Composition of permutations: after every step, which permutation the steps so far make together.

Legend: B batch, T tokens, G permutations.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from math import factorial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .generated import Drawn, GeneratedTask, check_whole

__all__ = ["PermutationTask", "permutations"]


@dataclass(frozen=True)
class PermutationTask(GeneratedTask):
    """Settings of `permutations`; use that function, which checks them."""

    things: int
    length: int
    batch_size: int
    held_out_batches: int

    name: ClassVar[str] = "permutations"

    @property
    def num_tokens(self) -> int:
        return factorial(self.things)

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Random permutations, and the product of all up to each position."""
        inputs_BT = rng.integers(self.num_tokens, size=(count, self.length))
        table_GG, targets_BT = products(self.things), inputs_BT.copy()
        for t in range(1, self.length):
            targets_BT[:, t] = table_GG[targets_BT[:, t - 1], inputs_BT[:, t]]
        return inputs_BT, targets_BT

    def describe(self) -> str:
        """Which group, length, how examples are split."""
        return (f"composition of {self.length} permutations of {self.things} things, batches of {self.batch_size}, "
                f"{self.held_out_batches} held out, wrong products in %")


def permutations(things: int = 3, length: int = 16, batch: int = 64, held_out_batches: int = 8) -> PermutationTask:
    """The word problem of the symmetric group (Liu et al., 2023; Merrill et al., 2024), scored as wrong products in %.

    Each answer needs all steps before it, in order: a network whose layers each combine tokens once needs depth that grows
    with the length, a recurrence that tracks the state does not. Chance is 100 - 100 / things!.

    Args:
        things: that are permuted; 5 and more make a group that is not solvable.
        length: permutations in a sequence.
        batch: sequences per batch.
        held_out_batches: batches of a score.

    Raises:
        ValueError: fewer than 2 things, or more than 6, whose table of products would not fit.
    """
    check_whole("permutations", length=length, batch=batch, held_out_batches=held_out_batches)
    if not isinstance(things, int) or not 2 <= things <= 6:
        raise ValueError(f"things is a whole number from 2 to 6 at tasks.permutations: got {things!r}; use 3 or 5")
    return PermutationTask(things, length, batch, held_out_batches)


@functools.lru_cache(maxsize=8)
def products(things: int) -> NDArray[np.int64]:
    """Which permutation "first a, then b" is, [a, b], numbered in lexicographic order."""
    group = np.array(list(itertools.permutations(range(things))))
    number = {tuple(p): n for n, p in enumerate(group)}
    return np.array([[number[tuple(b[a])] for b in group] for a in group])
