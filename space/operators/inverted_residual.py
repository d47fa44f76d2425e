"""The mobile convolution: expand, filter each channel, project.

Legend: B batch, H and W rows and columns of tokens, D width, E expanded width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_whole
from .depthwise_conv2d import DepthwiseConvolution2d, square_taps
from .spatial import require_odd

__all__ = ["InvertedBottleneck", "MobileConv"]


class InvertedBottleneck(nn.Module):
    """`norm(down(relu6(norm(conv(relu6(norm(up(x))))))))`, with a norm of its own at each place."""

    def __init__(self, width: int, kernel: int, expanded: int, folded: bool = False):
        super().__init__()
        self.up = nn.Linear(width, expanded, bias=False)
        self.up_norm: Any = ChannelShift(expanded) if folded else BatchNormalisation(expanded)
        self.conv = DepthwiseConvolution2d(expanded, kernel)
        self.conv_norm: Any = ChannelShift(expanded) if folded else BatchNormalisation(expanded)
        self.down = nn.Linear(expanded, width, bias=False)
        self.down_norm: Any = ChannelShift(width) if folded else BatchNormalisation(width)

    def forward(self, x: Tensor) -> Tensor:
        x_E = F.relu6(self.up_norm(self.up(x)))
        x_E = F.relu6(self.conv_norm(self.conv(x_E)))
        y: Tensor = self.down_norm(self.down(x_E))
        return y


@dataclass(frozen=True)
class MobileConv(Operator):
    """MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018), as a residual branch.

    kernel: side of the depthwise filter, odd. expand: expanded width over width, whole. folded: whether batch norms are in
    the weights before them, all but their shift. The searched operation of NAS-Bench-Macro (Su et al., 2021);
    `Block(mixer=MobileConv(), norm=NoNorm())` is the paper's block at stride 1.
    """

    kernel: Any = 3
    expand: Any = 6
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018)

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        require_whole("expand", self.expand, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, copies = axis("width", width), axis("expand", self.expand) * axis("channels", width)
        return {"up.weight": param(copies, d), "down.weight": param(d, copies),
                "conv.taps": square_taps(copies, self.kernel),
                **batch_norm_axes("up_norm", copies, self.folded), **batch_norm_axes("conv_norm", copies, self.folded),
                **batch_norm_axes("down_norm", d, self.folded)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"up_norm": "up.weight", "conv_norm": "conv.taps", "down_norm": "down.weight"}

    def build(self, width: int) -> nn.Module:
        return InvertedBottleneck(width, self.kernel, self.expand * width, bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """Both matrices and the filter at every place, taps outside the grid included."""
        filters = self.expand * width * self.kernel**2
        return float(tokens_of(length) * (self.matrix_numel(width) + filters))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
