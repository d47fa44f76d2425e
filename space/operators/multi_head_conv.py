"""Convolutions per head: every head filters its own channels, a projection joins them.

Legend: B batch, H and W rows and columns of tokens, D width, P channels of a head (head_dim).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Dim, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_divisor, require_whole
from .spatial import as_grid, require_odd

__all__ = ["HeadConvolutions", "MultiHeadConv"]


class HeadConvolutions(nn.Module):
    """`out(relu(norm(conv(x))))`; within a head every channel that goes out sees every one that comes in."""

    def __init__(self, width: int, head_dim: int, kernel: int, folded: bool = False):
        super().__init__()
        self.heads = width // head_dim
        self.weight = nn.Parameter(torch.empty(width, head_dim, kernel, kernel))
        self.norm: Any = ChannelShift(width) if folded else BatchNormalisation(width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW, half = as_grid(x).permute(0, 3, 1, 2), self.weight.shape[-1] // 2
        h_BDHW = F.conv2d(x_BDHW, self.weight, padding=half, groups=self.heads)
        y_BHWD: Tensor = self.out(F.relu(self.norm(h_BDHW.permute(0, 2, 3, 1))))
        return y_BHWD.view(x.shape)


@dataclass(frozen=True)
class MultiHeadConv(Operator):
    """Multi-head convolutional attention of Next-ViT (Li et al., 2022), which has no attention in it.

    head_dim: channels of a head; there are width / head_dim. kernel: side of the filters, odd. folded: whether the batch
    norm is in the weights before it, all but its shift. The paper's convolution block
    is `Block(mixer=MultiHeadConv(), norm=NoNorm())` and `Block(channel=MLP(ratio=3, activation="relu"), norm=BatchNorm())`.
    """

    head_dim: Any = 32
    kernel: Any = 3
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "a head is a range of the stream", "heads": "a range of the stream",
                                          "head_channels": "a channel of the stream"}
    source: ClassVar[Source] = Source("Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic "
                                      "Industrial Scenarios", 2022, options=("S264",))

    def check(self, width: int, where: str) -> None:
        require_whole("head_dim", self.head_dim, where)
        require_divisor("head_dim", self.head_dim, "width", width, where)
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        inner: Dim = axis("heads", width // self.head_dim) * axis("head_dim", self.head_dim)
        taps = [axis("tap_rows", self.kernel, "centre"), axis("tap_columns", self.kernel, "centre")]
        return {"weight": param(inner, axis("head_channels", self.head_dim), *taps),
                "out.weight": param(axis("width", width), inner), **batch_norm_axes("norm", inner, self.folded)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"norm": "weight"}

    def build(self, width: int) -> nn.Module:
        return HeadConvolutions(width, self.head_dim, self.kernel, bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """Filters and projection at every place, taps outside the grid included."""
        return float(tokens_of(length) * width * (self.head_dim * self.kernel**2 + width))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
