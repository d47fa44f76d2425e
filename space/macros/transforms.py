"""Token reductions as one thing: X' = W X, with a matrix W of M rows and N columns whose rows sum to one.

This is the view of Token Transforming (Zeng et al., 2025), and all reductions here share it: what differs is how W is made.

    pruning         rows of W are one-hot: a token stays or is dropped                          `Rows`
    merging         rows average tokens that no other row has, by their sizes                   `Rows`
    many to many    rows are dense: every row takes something of every token                    `Mixture`

What a token becomes later comes back to its place by the transpose of W, its rows made to sum to one: for a merged token
that is what it was merged into; a dropped token, which has a column of zeros, keeps what it was.

`Rows` never writes W out: it adds tokens up at their rows, which takes no product per pair of tokens.

Legend: B batch, N tokens, M rows (tokens after), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Mixture", "Rows", "inverse", "rows_of"]


class Rows:
    """W with at most one entry in a column. row: of every token, `count` where it has none. weight: the entries, [B, N]."""

    def __init__(self, row_BN: Tensor, weight_BN: Tensor, count: int):
        self.row_BN, self.weight_BN, self.count = row_BN, weight_BN, count

    def matrix(self) -> Tensor:
        """W, [B, M, N]."""
        batch, tokens = self.row_BN.shape
        whole = self.weight_BN.new_zeros(batch, self.count + 1, tokens)
        return whole.scatter(1, self.row_BN[:, None], self.weight_BN[:, None])[:, :self.count]

    def apply(self, x_BND: Tensor) -> Tensor:
        """W X."""
        batch, _, width = x_BND.shape
        whole = x_BND.new_zeros(batch, self.count + 1, width)
        at_BND = self.row_BN[..., None].expand_as(x_BND)
        return whole.scatter_add(1, at_BND, x_BND * self.weight_BN[..., None])[:, :self.count]

    def restored(self, y_BMD: Tensor, x_BND: Tensor) -> Tensor:
        """Every token as what it became part of; `x` where it was dropped."""
        row_BN1 = self.row_BN[..., None]
        y_BND = y_BMD.gather(1, row_BN1.clamp(max=self.count - 1).expand_as(x_BND))
        return torch.where(row_BN1 < self.count, y_BND, x_BND)

    def sizes(self, size_BN: Tensor) -> Tensor:
        """How many of the first tokens are in each row."""
        whole = size_BN.new_zeros(len(size_BN), self.count + 1)
        return whole.scatter_add(1, self.row_BN, size_BN)[:, :self.count]


class Mixture:
    """W written out, [B, M, N]."""

    def __init__(self, weight_BMN: Tensor):
        self.weight_BMN = weight_BMN

    def matrix(self) -> Tensor:
        return self.weight_BMN

    def apply(self, x_BND: Tensor) -> Tensor:
        """W X."""
        return self.weight_BMN @ x_BND

    def restored(self, y_BMD: Tensor, x_BND: Tensor) -> Tensor:
        """Every token as the mean of the rows, by how much of it each took."""
        return inverse(self.weight_BMN) @ y_BMD

    def sizes(self, size_BN: Tensor) -> Tensor:
        """The sizes of the tokens, shared out by how much each row took of them."""
        return (inverse(self.weight_BMN).mT @ size_BN[..., None])[..., 0]


def inverse(weight_BMN: Tensor) -> Tensor:
    """The transpose, its rows made to sum to one: [B, N, M]."""
    tiny = torch.finfo(weight_BMN.dtype).tiny
    return (weight_BMN / weight_BMN.sum(1, keepdim=True).clamp_min(tiny)).mT


def rows_of(target_BN: Tensor, size_BN: Tensor, count: int) -> Rows:
    """W from the place that every token goes to: its own where it stays, that of another token it is merged into, -1 to be
    dropped. Rows stand in the order of the tokens that stay, `count` of them, and average by size."""
    stays_BN = target_BN == torch.arange(target_BN.shape[1], device=target_BN.device)
    rank_BN = stays_BN.cumsum(1) - 1
    row_BN = torch.where(target_BN < 0, count, rank_BN.gather(1, target_BN.clamp(min=0)))
    total_BM = size_BN.new_zeros(len(size_BN), count + 1).scatter_add(1, row_BN, size_BN)
    return Rows(row_BN, size_BN / total_BM.gather(1, row_BN), count)
