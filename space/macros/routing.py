"""Which tokens go through a part, and how they are taken out of the sequence and put back.

Legend: B batch, T tokens, K chosen tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["best_of_frames", "compacted", "count_of", "gathered", "picked", "put_back"]


def count_of(share: float, tokens: int) -> int:
    """How many of `tokens` a share of them is: rounded up, at least one."""
    return max(1, min(tokens, math.ceil(share * tokens - 1e-9)))


def picked(score_BT: Tensor, count: int) -> Tensor:
    """The places of the `count` largest scores of every sequence, in the order of the sequence."""
    return score_BT.topk(count, dim=-1).indices.sort(dim=-1).values


def best_of_frames(score_BT: Tensor, frames_BT: Tensor, share: float) -> Tensor:
    """Whether a token is kept: tokens of frame 0, which is none, all; of every other frame the share with the largest scores,
    rounded up, at least one."""
    order_BT = torch.argsort(score_BT, dim=-1, descending=True, stable=True)
    order_BT = order_BT.gather(1, torch.argsort(frames_BT.gather(1, order_BT), dim=-1, stable=True))
    sorted_BT = frames_BT.gather(1, order_BT)                             # frame by frame, the largest score first
    first_BT = torch.searchsorted(sorted_BT, sorted_BT)
    size_BT = torch.searchsorted(sorted_BT, sorted_BT, right=True) - first_BT
    rank_BT = torch.arange(score_BT.shape[1], device=score_BT.device) - first_BT
    count_BT = torch.ceil(share * size_BT.double() - 1e-9).clamp(min=1)
    keep_BT = (sorted_BT == 0) | (rank_BT < count_BT)
    return torch.zeros_like(keep_BT).scatter(1, order_BT, keep_BT)


def compacted(keep_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the kept tokens of every sequence in order, and whether each is kept.

    Sequences with fewer are filled with others behind, which a causal part cannot see from the kept ones.
    """
    count = int(keep_BT.sum(-1).max())
    index_BK = torch.argsort((~keep_BT).to(torch.uint8), dim=-1, stable=True)[:, :count]
    return index_BK, keep_BT.gather(1, index_BK)


def gathered(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens at these places."""
    return x_BTD.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, x_BTD.shape[-1]))


def put_back(x_BTD: Tensor, index_BK: Tensor, y_BKD: Tensor) -> Tensor:
    """The sequence with `y` at these places."""
    return x_BTD.scatter(1, index_BK.unsqueeze(-1).expand(-1, -1, x_BTD.shape[-1]), y_BKD)
