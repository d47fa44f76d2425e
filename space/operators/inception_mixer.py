"""Three ways to mix tokens side by side, each on channels of its own: attention, a filter, a maximum.

Legend: B batch, H and W rows and columns of tokens, D width, L channels that attend, C channels of each other branch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .pooling import enlarged, mean_pooled
from .spatial import as_grid, grid_of

__all__ = ["InceptionBranches", "InceptionMixer"]


class InceptionBranches(nn.Module):
    """`out(y + fuse(y))` of the branches' outputs y; all but attention are twice as wide as what they read."""

    def __init__(self, width: int, heads: int, head_dim: int, pool: int):
        super().__init__()
        attended, channels = heads * head_dim, (width - heads * head_dim) // 2
        self.heads, self.pool = heads, pool
        self.query, self.key, self.value = (nn.Linear(attended, attended, bias=False) for _ in range(3))
        self.widen = nn.Linear(channels, 2 * channels, bias=False)
        self.conv = GridFilters(2 * channels, 3)
        self.maxima = nn.Linear(channels, 2 * channels, bias=False)
        self.fuse = GridFilters(attended + 4 * channels, 3)
        self.out = nn.Linear(attended + 4 * channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD, attended = as_grid(x), self.query.weight.shape[0]
        conv_BHWC, max_BHWC = x_BHWD[..., attended::2], x_BHWD[..., attended + 1::2]
        max_BCHW = F.max_pool2d(max_BHWC.permute(0, 3, 1, 2), 3, 1, 1)
        y_BHWE = torch.cat([self.attended(x_BHWD[..., :attended]), F.gelu(self.conv(self.widen(conv_BHWC))),
                            F.gelu(self.maxima(max_BCHW.permute(0, 2, 3, 1)))], -1)
        y_BHWD: Tensor = self.out(y_BHWE + self.fuse(y_BHWE))
        return y_BHWD.view(x.shape)

    def attended(self, x_BHWL: Tensor) -> Tensor:
        """Attention among the means of squares of `pool` x `pool` tokens, given back to every token of its square."""
        small_BHWL = mean_pooled(x_BHWL, self.pool) if self.pool > 1 else x_BHWL
        q, k, v = (project(small_BHWL).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        y_BTL = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y_BHWL = y_BTL.view(small_BHWL.shape)
        return enlarged(y_BHWL, self.pool, x_BHWL.shape[1], x_BHWL.shape[2]) if self.pool > 1 else y_BHWL


@dataclass(frozen=True)
class InceptionMixer(Operator):
    """Inception Transformer (Si et al., 2022): channels split into attention for low frequencies, and a depthwise filter and
    a maximum over 3 x 3 for high ones.

    heads, head_dim: of attention, which reads heads * head_dim of the channels; more of them in deeper layers are the
    paper's frequency ramp. The rest is shared out evenly to the other two. pool: side of the squares of tokens that attend as
    one; 2 in the early stages of the paper, 1 in the late. The paper puts attention's channels last and the others in
    ranges, where here they come first and the others alternate, so that narrower layers are parts of wider ones. Matrices
    have no biases.
    """

    heads: Any = 1
    pool: Any = 2
    head_dim: Any = 32
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "which branch a channel goes through depends on its place",
                                          "attended": "a channel of the stream", "even": "a channel of the stream",
                                          "odd": "a channel of the stream"}
    source: ClassVar[Source] = Source("Inception Transformer", 2022, options=("S040",))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("head_dim", self.head_dim, where)
        require_whole("pool", self.pool, where, instead="use 1 for attention over all tokens")
        rest = width - self.heads * self.head_dim
        if rest < 2 or rest % 2:
            raise ValueError(f"heads * head_dim must leave an even number of channels, at least 2, at {where}: got "
                             f"{self.heads} * {self.head_dim} of {width}; use fewer heads, or attention alone")

    def _channels(self, width: int) -> int:
        return int(width - self.heads * self.head_dim) // 2

    def axes(self, width: int) -> dict[str, Param]:
        channels = self._channels(width)
        d, inner = axis("width", width), axis("heads", self.heads) * axis("head_dim", self.head_dim)
        conv, maxima = axis("conv_channels", 2 * channels), axis("max_channels", 2 * channels)
        read = axis("attended", self.heads * self.head_dim)
        every = inner + conv + maxima
        return {**{f"{name}.weight": param(inner, read) for name in ("query", "key", "value")},
                "widen.weight": param(conv, axis("even", channels)), "conv.taps": square_taps(conv, 3),
                "maxima.weight": param(maxima, axis("odd", channels)), "fuse.taps": square_taps(every, 3),
                "out.weight": param(d, every)}

    def build(self, width: int) -> nn.Module:
        return InceptionBranches(width, self.heads, self.head_dim, self.pool)

    def macs(self, width: int, length: Length) -> float:
        """Matrices and filters of all tokens but those of attention, which are of the smaller grid with all its pairs."""
        channels, attended = self._channels(width), self.heads * self.head_dim
        small = math.prod(-(-size // self.pool) for size in grid_of(length))
        per_token = 4 * channels**2 + 18 * channels + (attended + 4 * channels) * (9 + width)
        return float(tokens_of(length) * per_token + small * attended * (3 * attended + 2 * small))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
