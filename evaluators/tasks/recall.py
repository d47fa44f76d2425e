"""Multi-query associative recall: pairs of keys and values, then some of the keys again, whose values are asked.

Legend: B batch, T tokens, K pairs, S slots, N positions that may be asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .generated import IGNORED, Drawn, GeneratedTask, check_whole

__all__ = ["RecallTask", "mqar"]


@dataclass(frozen=True)
class RecallTask(GeneratedTask):
    """Settings of `mqar`; use that function, which checks them."""

    pairs: int
    length: int
    vocab: int
    power: float
    random_fillers: bool
    batch_size: int
    held_out_batches: int

    name: ClassVar[str] = "mqar"

    @property
    def num_tokens(self) -> int:
        return self.vocab

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """k1 v1 k2 v2 ..., then slots of two tokens, one of which holds each key again."""
        half = self.vocab // 2
        keys_BK = _different(rng, count, half - 1, self.pairs) + 1
        values_BK = _different(rng, count, half, self.pairs) + half
        inputs_BT = np.zeros((count, self.length), dtype=np.int64)
        targets_BT = np.full_like(inputs_BT, IGNORED)
        inputs_BT[:, 0:2 * self.pairs:2], inputs_BT[:, 1:2 * self.pairs:2] = keys_BK, values_BK
        asked_BK = 2 * self.pairs + 2 * self._slots(rng, count)
        np.put_along_axis(inputs_BT, asked_BK, keys_BK, axis=1)
        np.put_along_axis(targets_BT, asked_BK, values_BK, axis=1)
        if self.random_fillers:
            noise_BT = rng.integers(self.vocab, size=inputs_BT.shape)
            inputs_BT = np.where(inputs_BT == 0, noise_BT, inputs_BT)
        return inputs_BT, targets_BT

    def _slots(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """A slot for each key, all different, drawn without replacement by weights a j^(a - 1) of slot j from 1: the
        largest of log-weights with Gumbel noise."""
        slots = np.arange(1, (self.length - 2 * self.pairs) // 2 + 1)
        noisy_BS = (self.power - 1) * np.log(slots) + rng.gumbel(size=(count, slots.size))
        return np.argsort(-noisy_BS, axis=1)[:, :self.pairs]

    def describe(self) -> str:
        """Pairs, length, vocabulary, how examples are split."""
        return (f"multi-query associative recall: {self.pairs} pairs in {self.length} tokens of {self.vocab}, batches of "
                f"{self.batch_size}, {self.held_out_batches} held out, wrong values in %")


def mqar(pairs: int = 4, length: int = 64, vocab: int = 256, power: float = 0.01, random_fillers: bool = False,
         batch: int = 64, held_out_batches: int = 8) -> RecallTask:
    """Multi-query associative recall (Zoology, Arora et al., 2023), scored as wrong values in per cent.

    Keys are the first half of the vocabulary without token 0, values the second half, both drawn anew for each sequence.
    The label stands at the position of the repeated key. Knowing nothing but which values there were gives 100 - 100 / pairs.

    Args:
        pairs: keys and values to remember.
        length: tokens of a sequence.
        vocab: tokens there are.
        power: of the law of the gap between a pair and its query; near 0 most gaps are short, 1 is uniform.
        random_fillers: fill the other positions with random tokens instead of token 0.
        batch: sequences per batch.
        held_out_batches: batches of a score.

    Raises:
        ValueError: the pairs and their queries do not fit into length, or the vocabulary has too few keys.
    """
    check_whole("mqar", pairs=pairs, length=length, vocab=vocab, batch=batch, held_out_batches=held_out_batches)
    if length % 2 or 4 * pairs > length:
        raise ValueError(f"length must be even and at least 4 times pairs at tasks.mqar: got {length} and {pairs}; use "
                         f"length={4 * pairs} or more")
    if vocab % 2 or vocab // 2 <= pairs:
        raise ValueError(f"vocab must be even and more than 2 times pairs at tasks.mqar: got {vocab} and {pairs}; use "
                         f"vocab={2 * pairs + 2} or more")
    if not 0 < power <= 1:
        raise ValueError(f"power is above 0 and at most 1 at tasks.mqar: got {power!r}; use 0.01")
    return RecallTask(pairs, length, vocab, float(power), bool(random_fillers), batch, held_out_batches)


def _different(rng: np.random.Generator, count: int, choices: int, size: int) -> NDArray[np.int64]:
    """`size` different numbers below `choices` for each of `count` rows, uniformly."""
    return np.argsort(rng.random((count, choices)), axis=1)[:, :size]
