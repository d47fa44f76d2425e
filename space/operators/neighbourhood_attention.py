"""Attention of every place of a grid to its nearest neighbours, with gaps or without.

Legend: B batch, H and W rows and columns of tokens, D width, A neighbours in one dimension, M neighbours (A * A), K heads,
P head_dim, N queries of a window (1: each place has a window of its own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .spatial import as_grid, grid_of, require_odd
from .windows import (
    attend_windows,
    check_heads,
    gather_windows,
    head_size,
    neighbours,
    projections,
    seen_in_windows,
    split_heads,
)

__all__ = ["DilatedNeighbourhood", "NeighbourhoodAttention"]


class DilatedNeighbourhood(nn.Module):
    """Tokens attend to the `kernel` x `kernel` nearest ones among those whose distance is a multiple of `dilation`.

    Neighbourhoods move inward at the borders, so corner and middle see equally many tokens, and shrink with a grid that
    has fewer. Offsets count in steps of the dilation; each has a bias per head.
    """

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, dilation: int):
        super().__init__()
        self.heads, self.head_dim, self.kernel, self.dilation = heads, head_dim, kernel, dilation
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.bias = nn.Parameter(torch.empty(2 * kernel - 1, 2 * kernel - 1, heads))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        _, height, width, _ = x_BHWD.shape
        rows_HA = neighbours(height, self.kernel, self.dilation, x.device)
        columns_WA = neighbours(width, self.kernel, self.dilation, x.device)
        q_BHWK1P = split_heads(self.query(x_BHWD).unsqueeze(3), self.heads) / math.sqrt(self.head_dim)
        k_BHWKMP, v_BHWKMP = (split_heads(gather_windows(project(x_BHWD), rows_HA, columns_WA), self.heads)
                              for project in (self.key, self.value))
        logits_BHWK1M = q_BHWK1P @ k_BHWKMP.transpose(-1, -2) + self.offsets(rows_HA, columns_WA)[:, :, :, None]
        y_BHW1E = attend_windows(logits_BHWK1M, v_BHWKMP, self.seen(height, width, rows_HA, columns_WA))
        y_BHWD: Tensor = self.out(y_BHW1E.squeeze(3))
        return y_BHWD.view(x.shape)

    def seen(self, height: int, width: int, rows_HA: Tensor, columns_WA: Tensor) -> Tensor | None:
        """Which neighbours there are; None for all, as on every grid that is large enough."""
        if all(size >= self.kernel * self.dilation for size in (height, width)):
            return None
        return seen_in_windows(height, width, rows_HA, columns_WA)

    def offsets(self, rows_HA: Tensor, columns_WA: Tensor) -> Tensor:
        """The bias of each neighbour of each place, [H, W, K, M], from the middle of the table."""
        down_HA, across_WA = (torch.div(torch.arange(len(index), device=index.device)[:, None] - index, self.dilation,
                                        rounding_mode="floor").clamp(1 - self.kernel, self.kernel - 1) + self.kernel - 1
                              for index in (rows_HA, columns_WA))
        bias_HWAAK = self.bias[down_HA[:, None, :, None], across_WA[None, :, None, :]]
        return bias_HWAAK.flatten(2, 3).transpose(2, 3)


@dataclass(frozen=True)
class NeighbourhoodAttention(Operator):
    """Dilated Neighborhood Attention Transformer (Hassani and Shi, 2022); at dilation 1 Neighborhood Attention (Hassani et
    al., 2022).

    kernel: side of the neighbourhood, odd; a smaller one reads the middle of the table of biases. dilation: step between
    neighbours; layers alternate 1 and up to side / kernel. head_dim defaults to width / heads. A sequence is a grid of one
    column. Linear in tokens: kernel**2 keys each, gathered, so memory grows by as much. On a grid of fewer than kernel *
    dilation places a side a token sees all of its step (the authors' code fills up with zeros that are seen). Attention
    inside the windows of a convolution, as in TiC (Zhang et al., 2023), differs at the borders, where windows are cut off.
    """

    heads: Any = 4
    kernel: Any = 7
    dilation: Any = 1
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Dilated Neighborhood Attention Transformer", 2022, systems=("S012",),
                                      options=("S126",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("dilation", self.dilation, where, instead="use 1 for neighbours without gaps")

    def axes(self, width: int) -> dict[str, Param]:
        offsets = (axis(f"offset_{way}", 2 * self.kernel - 1, "centre") for way in ("rows", "columns"))
        bias = param(*offsets, axis("heads", self.heads), init=Init("normal", gain=0.02))
        return {**projections(width, self.heads, head_size(self, width)), "bias": bias}

    def build(self, width: int) -> nn.Module:
        return DilatedNeighbourhood(width, self.heads, head_size(self, width), self.kernel, self.dilation)

    def macs(self, width: int, length: Length) -> float:
        """Projections of the tokens, plus scores and values of each with its neighbours."""
        keys = math.prod(min(self.kernel, -(-size // self.dilation)) for size in grid_of(length))
        pairs = 2 * self.heads * head_size(self, width) * keys
        return float(tokens_of(length) * (self.matrix_numel(width) + pairs))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
