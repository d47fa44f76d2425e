"""Predictions of several sub-models of one network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["self_ensemble"]


@torch.no_grad()
def self_ensemble(model: nn.Module, inputs: Tensor, samples: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """The mean of the predicted probabilities of `samples` sub-models, [..., classes].

    A sub-model is what a network that draws at random in training computes in one pass of training: `Attention` with
    `Subsample` reads other tokens each time. The mode of the model is as before afterwards, and torch's generator as well
    where `generator` gives the seeds instead. Norms that measure a batch in training would measure these.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1: got {samples}; use 8")
    before = model.training
    model.train()
    try:
        with torch.random.fork_rng(enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            found = [model(inputs).softmax(-1) for _ in range(samples)]
    finally:
        model.train(before)
    return torch.stack(found).mean(0)
