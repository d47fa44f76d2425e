"""Attention between channels: every channel is one token, described by its values over time.

Legend: B batch, T tokens (time), D width (channels), Q query_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["ChannelAttention", "VariateAttention"]


class VariateAttention(nn.Module):
    """`softmax(Q K^T / sqrt(Q)) V` of channels, whose queries, keys and values are linear in their `reach` last values."""

    def __init__(self, reach: int, query_dim: int):
        super().__init__()
        self.reach = reach
        self.query = nn.Parameter(torch.empty(query_dim, reach))
        self.key = nn.Parameter(torch.empty(query_dim, reach))
        self.value = nn.Parameter(torch.empty(reach, reach))

    def forward(self, x_BTD: Tensor) -> Tensor:
        first = self.reach - x_BTD.shape[1]
        if first < 0:
            raise ValueError(f"a sequence has at most `reach` tokens: got {x_BTD.shape[1]} and {self.reach}; "
                             "give ChannelAttention a larger reach")
        x_BDT = x_BTD.transpose(1, 2)
        q_BDQ, k_BDQ = F.linear(x_BDT, self.query[:, first:]), F.linear(x_BDT, self.key[:, first:])
        y_BDT = F.scaled_dot_product_attention(q_BDQ, k_BDQ, F.linear(x_BDT, self.value[first:, first:]))
        return y_BDT.transpose(1, 2)


@dataclass(frozen=True)
class ChannelAttention(Operator):
    """SAMformer: Unlocking the Potential of Transformers in Time Series Forecasting with Sharpness-Aware Minimization and
    Channel-Wise Attention (Ilbert et al., 2024): the attention of its one layer.

    reach: the most tokens; shorter sequences use the weights of the newest. query_dim: size of a channel's query and key.
    The width is the number of variates, or of whatever stands for them.
    """

    reach: Any = 512
    query_dim: Any = 16
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"time": "an entry is a time"}
    source: ClassVar[Source] = Source(
        "SAMformer: Unlocking the Potential of Transformers in Time Series Forecasting with Sharpness-Aware Minimization "
        "and Channel-Wise Attention", 2024, options=("S217",))

    def check(self, width: int, where: str) -> None:
        require_whole("reach", self.reach, where)
        require_whole("query_dim", self.query_dim, where)

    def axes(self, width: int) -> dict[str, Param]:
        q, time = axis("query_dim", self.query_dim), axis("time", self.reach, "trailing")
        return {"query": param(q, time), "key": param(q, time), "value": param(time, time)}

    def build(self, width: int) -> nn.Module:
        return VariateAttention(self.reach, self.query_dim)

    def macs(self, width: int, length: int) -> float:
        """Projections of every channel, plus scores and values of all pairs of channels."""
        return float(width * length * (2 * self.query_dim + length) + width * width * (self.query_dim + length))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
