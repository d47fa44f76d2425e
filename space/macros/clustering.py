"""Tokens of a grid as fewer centres, and back: a reduction made of distances, without parameters.

Legend: B batch, N tokens, M centres, D width, H and W rows and columns of tokens, R and C those of centres, K nearest
centres.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operators.spatial import as_grid
from .transforms import Mixture

__all__ = ["Centres", "NeighbourClustering", "distances"]


class Centres(Mixture):
    """W, and the centres that it gave: W X. A token comes back as the softmax-weighted mean of the centres it was nearest to,
    by its distance to them before anything was done to them."""

    def __init__(self, weight_BMN: Tensor, centre_BMD: Tensor, temperature: float, nearest: int):
        super().__init__(weight_BMN)
        self.centre_BMD, self.temperature, self.nearest = centre_BMD, temperature, nearest

    def apply(self, x_BND: Tensor) -> Tensor:
        """W X of the features that W was made of."""
        return self.centre_BMD

    def restored(self, y_BMD: Tensor, x_BND: Tensor) -> Tensor:
        """`y` at the tokens, which were `x`."""
        return self.spread(x_BND) @ y_BMD

    def spread(self, x_BND: Tensor) -> Tensor:
        """The weights of the centres for every token, [B, N, M]; a row has `nearest` entries that sum to one."""
        near_BNM = -distances(x_BND, self.centre_BMD) / self.temperature
        best_BNK, at_BNK = near_BNM.topk(min(self.nearest, near_BNM.shape[-1]), -1)
        return torch.zeros_like(near_BNM).scatter(-1, at_BNK, torch.softmax(best_BNK, -1))


class NeighbourClustering(nn.Module):
    """Centres start as means of the cells of a coarser grid; then every token is shared out among those around its cell, by a
    softmax of the negative squared distance, and centres are the means of what they got, several times over."""

    def __init__(self, rows: int, columns: int, iterations: int, radius: int, temperature: float, nearest: int):
        super().__init__()
        self.rows, self.columns, self.iterations, self.radius = rows, columns, iterations, radius
        self.temperature, self.nearest = temperature, nearest

    def forward(self, x: Tensor, key_BNP: Tensor, attention_BHNN: Tensor | None, size_BN: Tensor) -> Centres:
        x_BHWD = as_grid(x)
        height, width = x_BHWD.shape[1:3]
        rows, columns = min(self.rows, height), min(self.columns, width)
        x_BND = x_BHWD.flatten(1, 2)
        centre_BMD = F.adaptive_avg_pool2d(x_BHWD.permute(0, 3, 1, 2), (rows, columns)).flatten(2).mT
        is_near_MN = self.around(height, rows, x.device)[:, None, :, None] & self.around(width, columns, x.device)[:, None]
        is_near_MN = is_near_MN.flatten(2, 3).flatten(0, 1)
        weight_BMN = x.new_zeros(len(x), rows * columns, height * width)
        for _ in range(self.iterations):
            score_BMN = (-distances(centre_BMD, x_BND) / self.temperature).masked_fill(~is_near_MN, -torch.inf)
            share_BMN = torch.softmax(score_BMN, 1)
            weight_BMN = share_BMN / share_BMN.sum(-1, keepdim=True).clamp_min(1e-16)
            centre_BMD = weight_BMN @ x_BND
        return Centres(weight_BMN, centre_BMD, self.temperature, self.nearest)

    def around(self, tokens: int, cells: int, device: torch.device) -> Tensor:
        """Whether each token of a side lies within `radius` cells of each cell, [cells, tokens]."""
        cell_N = torch.arange(tokens, device=device) * cells // tokens
        return (cell_N - torch.arange(cells, device=device)[:, None]).abs() <= self.radius


def distances(a_BND: Tensor, b_BMD: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs, [B, N, M]."""
    squares_BNM = a_BND.square().sum(-1)[..., None] + b_BMD.square().sum(-1)[:, None]
    return (squares_BNM - 2 * a_BND @ b_BMD.mT).clamp_min(0)
