"""Weighted key values, pair by pair: the specification of `chunked.py`.

Shape suffixes: B batch, T time, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_bidirectional_wkv", "naive_wkv"]


def weighted(weights: list[Tensor], v_BTD: Tensor) -> Tensor:
    """The mean of the first values by their weights."""
    weight_BTD = torch.stack(weights, dim=1)
    return (weight_BTD * v_BTD[:, :len(weights)]).sum(1) / weight_BTD.sum(1)


def naive_wkv(k_BTD: Tensor, v_BTD: Tensor, *, log_decay_BTD: Tensor, bonus_D: Tensor) -> Tensor:
    """Softmax-weighted values per channel: token i weighs exp(k_i + g_{i+1} + ... + g_{t-1}), token t exp(k_t + bonus).

    No maximum is taken out, so that large keys overflow: for tests, in float64.
    """
    log_decay_BTD = log_decay_BTD.expand_as(k_BTD)
    rows = []
    for t in range(k_BTD.shape[1]):
        weights = [torch.exp(k_BTD[:, i] + log_decay_BTD[:, i + 1:t].sum(1)) for i in range(t)]
        weights.append(torch.exp(k_BTD[:, t] + bonus_D))
        rows.append(weighted(weights, v_BTD))
    return torch.stack(rows, dim=1)


def naive_bidirectional_wkv(k_BTD: Tensor, v_BTD: Tensor, *, log_decay_D: Tensor, bonus_D: Tensor) -> Tensor:
    """The same over all tokens: token i weighs exp(k_i + (|t - i| - 1) g), token t exp(k_t + bonus)."""
    length, rows = k_BTD.shape[1], []
    for t in range(length):
        weights = [torch.exp(k_BTD[:, i] + (bonus_D if i == t else (abs(t - i) - 1) * log_decay_D)) for i in range(length)]
        rows.append(weighted(weights, v_BTD))
    return torch.stack(rows, dim=1)
