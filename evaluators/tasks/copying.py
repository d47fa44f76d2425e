"""Selective copying: tokens strewn among blanks, to be written in order when asked.

Legend: B batch, T tokens, C tokens to copy, N blanks among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .generated import IGNORED, Drawn, GeneratedTask, check_whole

__all__ = ["CopyingTask", "selective_copying"]


@dataclass(frozen=True)
class CopyingTask(GeneratedTask):
    """Settings of `selective_copying`; use that function, which checks them."""

    tokens: int
    length: int
    vocab: int
    batch_size: int
    held_out_batches: int

    name: ClassVar[str] = "selective_copying"

    @property
    def num_tokens(self) -> int:
        return self.vocab

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Tokens with blanks before them, the copy token, and as many blanks as there are tokens to write."""
        blank, copy = self.vocab - 2, self.vocab - 1
        inputs_BT = np.full((count, self.length), blank, dtype=np.int64)
        tokens_BC = rng.integers(self.vocab - 2, size=(count, self.tokens))
        before_BN = rng.integers(self.tokens, size=(count, self.length - 2 * self.tokens - 1))
        blanks_BC = (before_BN[:, None, :] <= np.arange(self.tokens)[None, :, None]).sum(-1)
        np.put_along_axis(inputs_BT, blanks_BC + np.arange(self.tokens), tokens_BC, axis=1)
        inputs_BT[:, self.length - self.tokens - 1] = copy
        targets_BT = np.full_like(inputs_BT, IGNORED)
        targets_BT[:, self.length - self.tokens:] = tokens_BC
        return inputs_BT, targets_BT

    def describe(self) -> str:
        """Tokens, length, vocabulary, how examples are split."""
        return (f"selective copying: {self.tokens} tokens among {self.length - 2 * self.tokens - 1} blanks, vocabulary "
                f"{self.vocab}, batches of {self.batch_size}, {self.held_out_batches} held out, wrong tokens in %")


def selective_copying(tokens: int = 16, length: int = 256, vocab: int = 16, batch: int = 64,
                      held_out_batches: int = 8) -> CopyingTask:
    """Selective copying (Jing et al., 2019; Gu and Dao, 2023) as in MAD (Poli et al., 2024), scored as wrong tokens in %.

    Every blank stands before one of the tokens, drawn uniformly, never after the last. Chance is 100 - 100 / (vocab - 2).

    Args:
        tokens: to be copied.
        length: of the whole sequence: tokens, blanks among them, the copy token, blanks for the answer.
        vocab: tokens there are; the last two are the blank and the copy token.
        batch: sequences per batch.
        held_out_batches: batches of a score.

    Raises:
        ValueError: the length has no room for the tokens twice and the copy token, or there is nothing to copy.
    """
    check_whole("selective_copying", tokens=tokens, length=length, batch=batch, held_out_batches=held_out_batches)
    check_whole("selective_copying", 4, vocab=vocab)
    if length < 2 * tokens + 1:
        raise ValueError(f"length holds the tokens, the copy token and the answer at tasks.selective_copying: got {length} "
                         f"and {tokens}; use length={2 * tokens + 1} or more")
    return CopyingTask(tokens, length, vocab, batch, held_out_batches)
