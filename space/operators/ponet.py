"""Mixing by pooling at three scales: the whole sequence, segments, neighbours.

Legend: B batch, T tokens, D width, H heads, P head_dim, E all heads, C segments, N tokens of a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .spatial import require_odd
from .windows import check_heads, head_size

__all__ = ["PoNet", "PooledMixer"]


class PooledMixer(nn.Module):
    """`y_t = (global + segment_max_t) * o_t + window_max_t`, then a projection.

    global: one attention, per head, of the mean query to all keys. segment_max: the largest entries of the token's segment.
    window_max: those of the tokens around it.
    """

    def __init__(self, width: int, heads: int, head_dim: int, segment: int, window: int):
        super().__init__()
        self.heads, self.segment, self.window = heads, segment, window
        inner = heads * head_dim
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.segments = nn.Linear(width, inner, bias=False)
        self.local = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        logits_BH1T = q.mean(2, keepdim=True) @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        global_B1E = (logits_BH1T.softmax(-1) @ v).transpose(1, 2).flatten(2)
        local_BTE = F.max_pool1d(self.local(x_BTD).transpose(1, 2), self.window, 1, self.window // 2).transpose(1, 2)
        y_BTD: Tensor = self.out((global_B1E + self.largest(self.segments(x_BTD))) * self.gate(x_BTD) + local_BTE)
        return y_BTD

    def largest(self, x_BTE: Tensor) -> Tensor:
        """The largest entries of each token's segment."""
        length = x_BTE.shape[1]
        x_BTE = F.pad(x_BTE, (0, 0, 0, -length % self.segment), value=-torch.inf)
        x_BCNE = torch.unflatten(x_BTE, 1, (x_BTE.shape[1] // self.segment, self.segment))
        return x_BCNE.amax(2, keepdim=True).expand_as(x_BCNE).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class PoNet(Operator):
    """PoNet: Pooling Network for Efficient Token Mixing in Long Sequences (Tan et al., 2022).

    segment: tokens of a segment; the authors' are sentences, or a fixed number of equal parts. window: tokens of the local
    maximum, odd. head_dim defaults to width / heads. Linear in the length. Both ways: the global part is one vector for all
    tokens. Six projections as in the paper's formulas, and the last one of its attention layer.
    """

    heads: Any = 4
    segment: Any = 64
    window: Any = 3
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("PoNet: Pooling Network for Efficient Token Mixing in Long Sequences", 2022,
                                      systems=("S002",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("segment", self.segment, where)
        require_odd("window", self.window, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, h, size = axis("width", width), axis("heads", self.heads), head_size(self, width)
        keys, values = param(h * axis("key_dim", size), d), h * axis("value_dim", size)
        return {"query.weight": keys, "key.weight": keys, "out.weight": param(d, values),
                **{f"{name}.weight": param(values, d) for name in ("value", "gate", "segments", "local")}}

    def build(self, width: int) -> nn.Module:
        return PooledMixer(width, self.heads, head_size(self, width), self.segment, self.window)

    def macs(self, width: int, length: int) -> float:
        """Projections, and one attention of a single query."""
        return float(length * (self.matrix_numel(width) + 2 * self.heads * head_size(self, width)))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
