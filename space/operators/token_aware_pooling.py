"""Averages over neighbourhoods of several sizes, mixed by each token in its own way.

Legend: B batch, H and W rows and columns of tokens, D width, R ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNorm, BatchNormalisation
from .checks import require_whole
from .spatial import as_grid

__all__ = ["MixedAverages", "TokenAwarePooling"]


class MixedAverages(nn.Module):
    """`sum over r of weight[r] * average[r]`: the token itself for r = 0, else the mean of the 3 x 3 tokens r apart, zeros
    outside the grid; weights are a softmax of two 3 x 3 convolutions with a batch norm between them."""

    def __init__(self, width: int, ranges: int):
        super().__init__()
        self.first = nn.Parameter(torch.empty(ranges, width, 3, 3))
        self.norm = BatchNormalisation(ranges)
        self.second = nn.Parameter(torch.empty(ranges, ranges, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        scores_BHWR = self.norm(F.conv2d(x_BHWD.permute(0, 3, 1, 2), self.first, padding=1).permute(0, 2, 3, 1))
        scores_BRHW = F.conv2d(scores_BHWR.permute(0, 3, 1, 2), self.second, padding=1)
        weights = scores_BRHW.softmax(1).unbind(1)
        y_BHWD = weights[0][..., None] * x_BHWD
        for apart, weight_BHW in enumerate(weights[1:], 1):
            y_BHWD = y_BHWD + weight_BHW[..., None] * average(x_BHWD, apart)
        return y_BHWD.reshape(x.shape)


def average(x_BHWD: Tensor, apart: int) -> Tensor:
    """The mean of the nine tokens `apart` rows and columns away from each other, one dimension after the other."""
    for dim in (1, 2):
        size = x_BHWD.shape[dim]
        pads = (0, 0, 0, 0, apart, apart) if dim == 1 else (0, 0, apart, apart)
        filled = F.pad(x_BHWD, pads)
        x_BHWD = (filled.narrow(dim, 0, size) + x_BHWD + filled.narrow(dim, 2 * apart, size)) / 3
    return x_BHWD


@dataclass(frozen=True)
class TokenAwarePooling(Operator):
    """The token-aware average pooling of Robustifying Token Attention (Guo et al., 2023), there a step before attention.

    ranges: how many averages a token chooses among, itself being the first; 4 in the paper. A sequence is a grid of one
    column.
    """

    ranges: Any = 4
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Robustifying Token Attention for Vision Transformers", 2023, options=("S331",))
    fixed: ClassVar[Mapping[str, str]] = {"ranges": "how far apart the averaged tokens lie"}

    def check(self, width: int, where: str) -> None:
        require_whole("ranges", self.ranges, where)

    def axes(self, width: int) -> dict[str, Param]:
        scores, taps = axis("scores", self.ranges), (axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre"))
        norm = {f"norm.{name}": renamed(part, "width", scores) for name, part in BatchNorm().axes(self.ranges).items()}
        return {"first": param(scores, axis("width", width), *taps), **norm,
                "second": param(axis("ranges", self.ranges), scores, *taps)}

    def build(self, width: int) -> nn.Module:
        return MixedAverages(width, self.ranges)

    def macs(self, width: int, length: Length) -> float:
        """The two convolutions; averages are sums."""
        return float(tokens_of(length) * 9 * self.ranges * (width + self.ranges))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
