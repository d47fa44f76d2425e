"""The fused mobile convolution: a full convolution that expands, weighed channels, a projection.

Legend: B batch, H and W rows and columns of tokens, D width, E expanded width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_whole
from .spatial import as_grid, require_odd
from .squeeze_excite import ChannelWeights, squeeze_axes

__all__ = ["FusedBottleneck", "FusedMobileConv"]


class FusedBottleneck(nn.Module):
    """`norm(down(weigh(silu(norm(conv(x))))))`, with a norm of its own at each place; no weighing with `squeezed` 0."""

    def __init__(self, width: int, kernel: int, expanded: int, squeezed: int, folded: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(expanded, width, kernel, kernel))
        self.norm: Any = ChannelShift(expanded) if folded else BatchNormalisation(expanded)
        self.weigh = ChannelWeights(expanded, squeezed, "silu", "sigmoid") if squeezed else None
        self.down = nn.Linear(expanded, width, bias=False)
        self.down_norm: Any = ChannelShift(width) if folded else BatchNormalisation(width)

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        h_BEHW = F.conv2d(x_BDHW, self.weight, padding=self.weight.shape[-1] // 2)
        h_BHWE = F.silu(self.norm(h_BEHW.permute(0, 2, 3, 1)))
        if self.weigh is not None:
            h_BHWE = self.weigh(h_BHWE)
        y_BHWD: Tensor = self.down_norm(self.down(h_BHWE))
        return y_BHWD.view(x.shape)


@dataclass(frozen=True)
class FusedMobileConv(Operator):
    """EfficientNetV2: Smaller Models and Faster Training (Tan and Le, 2021), as a residual branch; the convolutional block of
    AsCAN (Kag et al., 2024).

    kernel: side of the square kernel, odd. expand: expanded width over width, whole. squeeze: whether the channels are
    weighed by what the grid holds, through a quarter of the width. folded: whether batch norms are in the weights before
    them, all but their shift. `Block(mixer=FusedMobileConv(), norm=NoNorm())` is the
    paper's block at stride 1.
    """

    kernel: Any = 3
    expand: Any = 4
    squeeze: Any = True
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("EfficientNetV2: Smaller Models and Faster Training", 2021, options=("S315",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        require_whole("expand", self.expand, where)

    def _squeezed(self, width: int) -> int:
        return max(width // 4, 1) if self.squeeze else 0

    def axes(self, width: int) -> dict[str, Param]:
        d, copies = axis("width", width), axis("expand", self.expand) * axis("channels", width)
        taps = [axis("tap_rows", self.kernel, "centre"), axis("tap_columns", self.kernel, "centre")]
        weigh = squeeze_axes("weigh.", copies, self._squeezed(width)) if self.squeeze else {}
        return {"weight": param(copies, d, *taps), **batch_norm_axes("norm", copies, self.folded), **weigh,
                "down.weight": param(d, copies), **batch_norm_axes("down_norm", d, self.folded)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"norm": "weight", "down_norm": "down.weight"}

    def build(self, width: int) -> nn.Module:
        return FusedBottleneck(width, self.kernel, self.expand * width, self._squeezed(width), bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """Convolution and projection at every place, taps outside the grid included, and the two small matrices once."""
        expanded = self.expand * width
        per_token = expanded * width * (self.kernel**2 + 1)
        return float(tokens_of(length) * per_token + 2 * expanded * self._squeezed(width))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
