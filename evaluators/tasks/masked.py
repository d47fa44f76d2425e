"""Any task on tokens with some of the training inputs hidden, under its ordinary loss.

Legend: B batch, T tokens, K hidden tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...space.operator import Source
from .base import Batch, Task, candidates, rng_seed

__all__ = ["MaskedInputs", "masked_inputs"]

STREAM = 3                           # apart from the one that the inner task draws its examples from


@dataclass(frozen=True)
class MaskedInputs(Task):
    """Settings of `masked_inputs`; use that function, which checks them."""

    task: Task
    share: float

    name: ClassVar[str] = "masked_inputs"
    proof: ClassVar[str] = "tests/evaluators/tasks/test_masked.py"
    source: ClassVar[Source] = Source("Mask-Enhanced Autoregressive Prediction: Pay Less Attention to Learn More", 2025,
                                      systems=("S327",))

    @property
    def metric(self) -> str:                                                         # type: ignore[override]
        return self.task.metric

    @property
    def unit(self) -> str:                                                           # type: ignore[override]
        return self.task.unit

    @property
    def goal(self) -> str:                                                           # type: ignore[override]
        return self.task.goal

    @property
    def mask_token(self) -> int:
        """The token after all others of the task."""
        return int(self.task.num_tokens)                                             # type: ignore[attr-defined]

    @property
    def num_tokens(self) -> int:
        """Those of the task and the one that hides."""
        return self.mask_token + 1

    def batch(self, split: str, step: int, seed: int) -> Batch:
        """The task's batch; in training, a share of every sequence's inputs is the mask token. Targets are as they were."""
        given = self.task.batch(split, step, seed)
        length = given.inputs.shape[1]
        if split != "train" or length < 2:
            return given
        rng = np.random.default_rng([*rng_seed(seed, step), STREAM])
        count = max(1, int(self.share * length))
        hidden_BK = rng.random((len(given.inputs), length - 1)).argsort(axis=1)[:, :count]
        return Batch(given.inputs.scatter(1, torch.from_numpy(hidden_BK), self.mask_token), given.targets)

    def num_batches(self, split: str) -> int:
        """Those of the task."""
        return self.task.num_batches(split)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's loss; where the input is hidden as everywhere else."""
        return self.task.loss_of(logits, batch)

    def tally(self, logits: Tensor, batch: Batch) -> tuple[float, int]:
        """The task's metric, of inputs that are all seen."""
        return self.task.tally(logits, batch)

    def check(self, space_or_plan: object) -> None:
        """What the task asks for, and an embedding that has the mask token too."""
        self.task.check(space_or_plan)
        for embed in candidates(space_or_plan, "embed"):
            if embed.vocab < self.num_tokens:
                raise ValueError(f"tasks.masked_inputs hides tokens behind token {self.mask_token} at embed: got {embed}; "
                                 f"use TokenEmbedding(vocab={self.num_tokens})")

    def describe(self) -> str:
        """The task's line, and how much of it is hidden."""
        return f"{self.task.describe()}; {self.share:.0%} of the training inputs hidden"

    def digest(self) -> str:
        """That of the task's data."""
        return self.task.digest()

    @property
    def fingerprint(self) -> str:
        """The task's, changed by the share."""
        text = json.dumps([self.name, self.task.fingerprint, self.share])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def masked_inputs(task: Task, share: float = 0.15) -> MaskedInputs:
    """Mask-Enhanced Autoregressive Prediction (Zhuang et al., 2025): next-token prediction with some inputs hidden.

    In training, `share` of the tokens of every sequence, at least one and never the last, is a mask token of its own; all
    targets stay, those of hidden places too, and the loss is the task's. Scores are of inputs without a mask. The model is
    any that the task takes, with one token more in its embedding. Every sequence has its own places; the authors' code draws
    them once for a batch.

    Args:
        task: on tokens, such as `text()` or `mqar()`.
        share: of the inputs; the paper trains with 0.15.

    Raises:
        ValueError: a task that is not on tokens, or a share that is not between 0 and 1.

    Example:
        >>> import bodyplan as bp
        >>> task = bp.tasks.masked_inputs(bp.tasks.mqar(pairs=2, length=20, vocab=32))
        >>> int((task.batch("train", 0, 0).inputs[0] == 32).sum())
        3
    """
    if not isinstance(task, Task) or isinstance(task, MaskedInputs) or not hasattr(task, "num_tokens"):
        raise ValueError(f"tasks.masked_inputs hides tokens of a task that has them: got {task!r}; use text() or mqar()")
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"share is above 0 and below 1 at tasks.masked_inputs: got {share!r}; use 0.15, or the task itself "
                         "for none")
    return MaskedInputs(task, float(share))
