"""One head over some of the channels; the others pass by.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), C channels that attend, Q query_dim.
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

__all__ = ["PartialAttention", "SingleHeadAttention"]


class PartialAttention(nn.Module):
    """`norm(out(relu([attention(first channels), the others])))`; the first channels are normalised over the whole grid,
    and their projection to query, key and value by batch."""

    def __init__(self, width: int, channels: int, query_dim: int):
        super().__init__()
        self.width, self.channels, self.query_dim = width, channels, query_dim
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.input = nn.Linear(channels, 2 * query_dim + channels, bias=False)
        self.input_norm = BatchNormalisation(2 * query_dim + channels)
        self.out = nn.Linear(width, width, bias=False)
        self.out_norm = BatchNormalisation(width)

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = as_grid(x).flatten(1, 2)
        some_BTC, others = torch.split(x_BTD, [self.channels, self.width - self.channels], -1)
        qkv = self.input_norm(self.input(self.normed(some_BTC)))
        q_BTQ, k_BTQ, v_BTC = qkv.split([self.query_dim, self.query_dim, self.channels], -1)
        y_BTC = F.scaled_dot_product_attention(q_BTQ, k_BTQ, v_BTC)
        y_BTD: Tensor = self.out_norm(self.out(F.relu(torch.cat([y_BTC, others], -1))))
        return y_BTD.view(x.shape)

    def normed(self, x_BTC: Tensor) -> Tensor:
        """Mean 0 and variance 1 over all tokens and channels of an image."""
        mean = x_BTC.mean((1, 2), keepdim=True)
        scale = torch.rsqrt((x_BTC - mean).square().mean((1, 2), keepdim=True) + 1e-5)
        return (x_BTC - mean) * scale * self.weight + self.bias


@dataclass(frozen=True)
class SingleHeadAttention(Operator):
    """SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design (Yun and Ro, 2024).

    ratio: how much of the width attends, rounded to a whole number of channels, the first ones. query_dim: size of queries
    and keys. A sequence is a grid of one column.
    """

    ratio: Any = 1 / 4.67
    query_dim: Any = 16
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "the first channels attend", "attending": "a channel of the stream",
                                          "passing": "a channel of the stream"}
    source: ClassVar[Source] = Source("SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", 2024,
                                      options=("S399",))

    def _channels(self, width: int) -> int:
        return int(max(1, round(self.ratio * width)))

    def check(self, width: int, where: str) -> None:
        require_whole("query_dim", self.query_dim, where)
        if isinstance(self.ratio, bool) or not 0 < self.ratio < 1 or self._channels(width) >= width:
            raise ValueError(f"ratio must be above 0 and leave channels that pass by at {where}: got {self.ratio!r} of "
                             f"{width}; use 0.25, or Attention(heads=1, bidirectional=True) for all of them")

    def axes(self, width: int) -> dict[str, Param]:
        channels, d = self._channels(width), axis("width", width)
        c, q, v = axis("attending", channels), axis("query_dim", self.query_dim), axis("values", channels)
        packed = q + axis("query_dim", self.query_dim) + v
        norm = BatchNorm().axes(width)
        return {"weight": param(c, share="own", init="ones"), "bias": param(c, share="own", init="zeros"),
                "input.weight": param(packed, c), "out.weight": param(d, v + axis("passing", width - channels)),
                **{f"input_norm.{name}": renamed(part, "width", packed) for name, part in norm.items()},
                **{f"out_norm.{name}": part for name, part in norm.items()}}

    def build(self, width: int) -> nn.Module:
        return PartialAttention(width, self._channels(width), self.query_dim)

    def macs(self, width: int, length: Length) -> float:
        """Projections, plus scores and values of all pairs."""
        tokens = tokens_of(length)
        return float(tokens * self.matrix_numel(width) + (self.query_dim + self._channels(width)) * tokens**2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
