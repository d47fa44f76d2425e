"""Convolutions whose channels are weighed by what the whole grid holds.

Legend: B batch, H and W rows and columns of tokens, D width, C compressed width, S squeezed width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .spatial import as_grid, require_odd

__all__ = ["ConvChannelAttention", "WeighedChannels"]


class WeighedChannels(nn.Module):
    """`scale * y * sigmoid(restore(relu(squeeze(mean of y))))` with `y = expand(gelu(compress(x)))`, both convolutions."""

    def __init__(self, width: int, compressed: int, squeezed: int, kernel: int, scale: float):
        super().__init__()
        self.scale = scale
        self.compress = nn.Parameter(torch.empty(compressed, width, kernel, kernel))
        self.expand = nn.Parameter(torch.empty(width, compressed, kernel, kernel))
        self.squeeze = nn.Linear(width, squeezed, bias=False)
        self.restore = nn.Linear(squeezed, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW, half = as_grid(x).permute(0, 3, 1, 2), self.compress.shape[-1] // 2
        h_BCHW = F.gelu(F.conv2d(x_BDHW, self.compress, padding=half))
        y_BHWD = F.conv2d(h_BCHW, self.expand, padding=half).permute(0, 2, 3, 1)
        weight_BD = torch.sigmoid(self.restore(F.relu(self.squeeze(y_BHWD.mean((1, 2))))))
        return (self.scale * y_BHWD * weight_BD[:, None, None]).reshape(x.shape)


@dataclass(frozen=True)
class ConvChannelAttention(Operator):
    """The channel attention block of HAT (Chen et al., 2023).

    `Block(mixer=Parallel(branches=(WindowAttention(window=16), ConvChannelAttention(scale=0.01))))` is the mixer of its
    hybrid block; `HaloAttention(block=16, halo=4, position="bias")` that of its overlapping one. compress: the width over
    that between the two convolutions. squeeze: the width over that between the matrices that weigh channels. kernel: side
    of the convolutions, odd. scale: a constant factor.
    """

    compress: Any = 3
    squeeze: Any = 30
    kernel: Any = 3
    scale: float = 1.0
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("HAT: Hybrid Attention Transformer for Image Restoration", 2023, options=("S256",))

    def check(self, width: int, where: str) -> None:
        require_whole("compress", self.compress, where)
        require_whole("squeeze", self.squeeze, where)
        require_odd("kernel", self.kernel, where)

    def _sizes(self, width: int) -> tuple[int, int]:
        return max(width // self.compress, 1), max(width // self.squeeze, 1)

    def axes(self, width: int) -> dict[str, Param]:
        compressed, squeezed = self._sizes(width)
        d, c, s = axis("width", width), axis("compressed", compressed), axis("squeezed", squeezed)
        taps = [axis("tap_rows", self.kernel, "centre"), axis("tap_columns", self.kernel, "centre")]
        return {"compress": param(c, d, *taps), "expand": param(d, c, *taps), "squeeze.weight": param(s, d),
                "restore.weight": param(d, s)}

    def build(self, width: int) -> nn.Module:
        return WeighedChannels(width, *self._sizes(width), self.kernel, self.scale)

    def macs(self, width: int, length: Length) -> float:
        """Both convolutions, taps on the zeros outside included, and the two matrices once."""
        compressed, squeezed = self._sizes(width)
        return float(2 * width * (tokens_of(length) * compressed * self.kernel**2 + squeezed))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
