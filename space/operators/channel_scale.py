"""A learned scale and shift of every channel, where a norm may stand.

Legend: D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["ChannelScale", "ScaledChannels"]


class ScaledChannels(nn.Module):
    """`x * weight + bias`."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@dataclass(frozen=True)
class ChannelScale(Operator):
    """The adaptive scale of Squeezeformer (Kim et al., 2022), which takes the place of the norm before a module where another
    follows it."""

    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("Squeezeformer: An Efficient Transformer for Automatic Speech Recognition", 2022,
                                      options=("S127",))

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"weight": param(d, share="own", init="ones"), "bias": param(d, share="own", init="zeros")}

    def build(self, width: int) -> nn.Module:
        return ScaledChannels(width)
