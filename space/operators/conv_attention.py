"""Attention whose queries, keys and values come from convolutions of the grid.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S tokens of the grid of keys, K heads,
P head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNorm, BatchNormalisation
from .checks import require_whole
from .depthwise_conv2d import filtered, square_taps
from .spatial import as_grid, grid_of, require_odd
from .windows import check_heads, head_size, projections

__all__ = ["ConvAttention", "ConvolutionalProjections", "SeparableProjection"]


class SeparableProjection(nn.Module):
    """A depthwise convolution, batch norm, then a matrix: one token for every `stride` x `stride`."""

    def __init__(self, width: int, inner: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.taps = nn.Parameter(torch.empty(width, kernel, kernel))
        self.norm = BatchNormalisation(width)
        self.project = nn.Linear(width, inner, bias=False)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y_BSE: Tensor = self.project(self.norm(filtered(x_BHWD, self.taps, self.stride).flatten(1, 2)))
        return y_BSE


class ConvolutionalProjections(nn.Module):
    """Softmax attention over all tokens, with separable convolutions in the place of the three matrices."""

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, kv_stride: int):
        super().__init__()
        self.heads = heads
        self.query = SeparableProjection(width, heads * head_dim, kernel, 1)
        self.key = SeparableProjection(width, heads * head_dim, kernel, kv_stride)
        self.value = SeparableProjection(width, heads * head_dim, kernel, kv_stride)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        q, k, v = (project(x_BHWD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        y_BKTP = F.scaled_dot_product_attention(q, k, v)
        y_BTD: Tensor = self.out(y_BKTP.transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)


@dataclass(frozen=True)
class ConvAttention(Operator):
    """CvT (Wu et al., 2021): attention with convolutional projections, which stand in for positions as well.

    kernel: side of the depthwise filters, odd. kv_stride: side of the square of tokens that give one key and value; 2 in
    the paper, so a quarter of them. head_dim defaults to width / heads. Scores are divided by sqrt(head_dim) (by sqrt(width)
    in the authors' code). A sequence is a grid of one column.
    """

    heads: Any = 4
    kernel: Any = 3
    kv_stride: Any = 2
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("CvT: Introducing Convolutions to Vision Transformers", 2021, options=("S032",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("kv_stride", self.kv_stride, where, instead="use 1 for a key per token")

    def axes(self, width: int) -> dict[str, Param]:
        matrices = projections(width, self.heads, head_size(self, width))
        declared = {"out.weight": matrices["out.weight"]}
        for name in ("query", "key", "value"):
            norm = {f"{name}.norm.{part}": each for part, each in BatchNorm().axes(width).items()}
            declared |= {f"{name}.taps": square_taps(axis("width", width), self.kernel), **norm,
                         f"{name}.project.weight": matrices[f"{name}.weight"]}
        return declared

    def build(self, width: int) -> nn.Module:
        return ConvolutionalProjections(width, self.heads, head_size(self, width), self.kernel, self.kv_stride)

    def macs(self, width: int, length: Length) -> float:
        """Queries and outputs of all tokens, keys and values of the smaller grid, filters, and all pairs of the two."""
        tokens, inner = tokens_of(length), self.heads * head_size(self, width)
        smaller = math.prod(-(-size // self.kv_stride) for size in grid_of(length))
        filters = (tokens + 2 * smaller) * width * self.kernel**2
        return float(filters + 2 * width * inner * (tokens + smaller) + 2 * inner * tokens * smaller)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
