"""The convolution module of Squeezeformer: that of the Conformer without its gate.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_whole
from .short_conv import tap_init
from .spatial import require_odd

__all__ = ["SqueezeformerConv", "SwishConvolution"]


class SwishConvolution(nn.Module):
    """`out(silu(norm(conv(silu(input(x))))))`; conv has one filter per channel, zeros outside the sequence."""

    def __init__(self, width: int, channels: int, kernel: int, folded: bool = False):
        super().__init__()
        self.input = nn.Linear(width, channels, bias=False)
        self.taps = nn.Parameter(torch.empty(channels, kernel))
        self.norm: Any = ChannelShift(channels) if folded else BatchNormalisation(channels)
        self.out = nn.Linear(channels, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        channels, kernel = self.taps.shape
        h_BC1T = F.silu(self.input(x_BTD)).transpose(1, 2)[:, :, None]
        h_BC1T = F.conv2d(h_BC1T, self.taps[:, None, None], padding=(0, kernel // 2), groups=channels)
        y_BTD: Tensor = self.out(F.silu(self.norm(h_BC1T[:, :, 0].transpose(1, 2))))
        return y_BTD


@dataclass(frozen=True)
class SqueezeformerConv(Operator):
    """Squeezeformer (Kim et al., 2022): swish in place of the gated linear unit of `ConformerConv`, so that all channels of
    the first projection are filtered.

    kernel: taps of the depthwise filters, odd. expand: their number over the width, whole. Batch norm sees later tokens
    while training, so the filters look both ways and there is no decoding step. folded: whether it is in the taps, all but
    its shift.
    """

    kernel: Any = 31
    expand: Any = 2
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Squeezeformer: An Efficient Transformer for Automatic Speech Recognition", 2022,
                                      options=("S127",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        require_whole("expand", self.expand, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, channels = axis("width", width), axis("expand", self.expand) * axis("channels", width)
        taps = param(channels, axis("taps", self.kernel, "centre"), init=tap_init(self.kernel))
        return {"input.weight": param(channels, d), "taps": taps, **batch_norm_axes("norm", channels, self.folded),
                "out.weight": param(d, channels)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"norm": "taps"}

    def build(self, width: int) -> nn.Module:
        return SwishConvolution(width, self.expand * width, self.kernel, bool(self.folded))

    def macs(self, width: int, length: int) -> float:
        """Both projections, and every tap at every token, taps on the zeros outside included."""
        return float(length * self.expand * width * (2 * width + self.kernel))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
