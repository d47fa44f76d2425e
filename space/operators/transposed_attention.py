"""Attention of channels to channels, over all tokens at once.

Legend: B batch, H and W rows and columns of tokens, T tokens (H * W), D width, K heads, P channels of a head (head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .cross_covariance import attending_channels
from .depthwise_conv2d import GridFilters, square_taps
from .spatial import as_grid, require_odd
from .windows import check_heads, head_size, projections

__all__ = ["ChannelSimilarities", "TransposedAttention"]

WEIGHTS = ("relu", "softmax")


class ChannelSimilarities(nn.Module):
    """`weights(temperature * q k^T) v` with q, k, v [P, T] per head: cosines of channels over the whole grid.

    Queries, keys and values are filtered by a depthwise convolution behind their matrix. "relu" keeps similarities that are
    positive and leaves their sum as it is; "softmax" makes them one.
    """

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, weights: str):
        super().__init__()
        self.heads, self.weights = heads, weights
        inner = heads * head_dim
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.query_conv, self.key_conv, self.value_conv = (GridFilters(inner, kernel) for _ in range(3))
        self.temperature = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        q_BKPT, k_BKPT, v_BKPT = (conv(project(x_BHWD)).flatten(1, 2).transpose(1, 2).unflatten(1, (self.heads, -1))
                                  for project, conv in ((self.query, self.query_conv), (self.key, self.key_conv),
                                                        (self.value, self.value_conv)))
        y_BTD: Tensor = self.out(attending_channels(q_BKPT, k_BKPT, v_BKPT, self.temperature, self.weights))
        return y_BTD.view(x.shape)


@dataclass(frozen=True)
class TransposedAttention(Operator):
    """The sparse global attention of DLGSANet (Li et al., 2023); with weights="softmax" that of Restormer (Zamir et al.,
    2022).

    heads: of channels that attend to each other. kernel: side of the depthwise filters, odd. weights: "relu" or "softmax".
    head_dim defaults to width / heads. A sequence is a grid of one column. Linear in tokens. (At test time the authors
    compute it in windows of the size of training images.)
    """

    heads: Any = 6
    kernel: Any = 3
    weights: Any = "relu"
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image "
                                      "Super-Resolution", 2023, options=("S244",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)
        if self.weights not in WEIGHTS:
            raise ValueError(f"{unknown('weights', self.weights, WEIGHTS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        heads, head_dim = axis("heads", self.heads), axis("head_dim", head_size(self, width))
        matrices = projections(width, self.heads, head_dim.size)
        keys = {f"{name}_conv.taps": square_taps(heads * head_dim, self.kernel) for name in ("query", "key", "value")}
        return {**matrices, **keys, "temperature": param(heads, share="own", init="ones")}

    def build(self, width: int) -> nn.Module:
        return ChannelSimilarities(width, self.heads, head_size(self, width), self.kernel, self.weights)

    def macs(self, width: int, length: Length) -> float:
        """Matrices and filters of all tokens, and two products of all pairs of channels of a head."""
        inner = self.heads * head_size(self, width)
        filters = 3 * inner * self.kernel**2
        return float(tokens_of(length) * (self.matrix_numel(width) + filters + 2 * inner * head_size(self, width)))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
