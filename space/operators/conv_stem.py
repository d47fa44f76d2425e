"""Pixels to a grid of tokens by convolutions at stride 2, one after the other.

Legend: B batch, C channels in, E channels out, H and W rows and columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Length, Operator, Source
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_divisor, require_whole

__all__ = ["ConvStem", "HalvedGrid", "HalvingConvolutions"]

ACTIVATIONS = ("gelu", "relu", "silu")


class HalvedGrid(nn.Module):
    """`norm(conv(x))` with a kernel of 3 x 3 at stride 2: [B, C, H, W] to [B, E, H / 2, W / 2], rounded up."""

    def __init__(self, channels: int, out: int, folded: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, 3, 3))
        self.norm: Any = ChannelShift(out) if folded else BatchNormalisation(out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BEHW = F.conv2d(x_BCHW, self.weight, stride=2, padding=1)
        y_BHWE: Tensor = self.norm(y_BEHW.permute(0, 2, 3, 1))
        return y_BHWE.permute(0, 3, 1, 2)


class HalvingConvolutions(nn.Module):
    """Halve the resolution and double the channels until the width is reached, an activation between and, `last`, behind."""

    def __init__(self, widths: tuple[int, ...], activation: str, last: bool, folded: bool = False):
        super().__init__()
        self.activation, self.last = activation, last
        depth = len(widths) - 1                       # in the names: stems of different depths share nothing
        self.layers = nn.ModuleDict({f"{depth}_{i}": HalvedGrid(widths[i], widths[i + 1], folded) for i in range(depth)})

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BCHW = pixels_BCHW
        for number, layer in enumerate(self.layers.values()):
            x_BCHW = layer(x_BCHW)
            if self.last or number + 1 < len(self.layers):
                x_BCHW = self.activated(x_BCHW)
        return x_BCHW.permute(0, 2, 3, 1)

    def activated(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return F.gelu(x)
        return F.relu(x) if self.activation == "relu" else F.silu(x)


@dataclass(frozen=True)
class ConvStem(Operator):
    """Early Convolutions Help Transformers See Better (Xiao et al., 2021). pixels (B, channels, H, W) to a grid
    (B, H / patch, W / patch, width).

    patch: pixels a side that become one token, a power of two: one convolution of 3 x 3 at stride 2 for every halving, each
    with a batch norm, widths doubling up to that of the stream. channels: of the images. image: their side, or (height,
    width). activation: "gelu", "relu" or "silu" between the convolutions; last: behind the last one as well. folded: whether
    batch norms are in the weights before them, all but their shift.
    """

    patch: Any = 4
    channels: Any = 3
    image: Any = 224
    activation: Any = "gelu"
    last: Any = False
    folded: Any = False
    kind: ClassVar[str] = "embedding"
    grid: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"channels": "a colour of the image"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Early Convolutions Help Transformers See Better", 2021, options=("S040", "S247"))

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    @property
    def length(self) -> Length:
        """(rows, columns) of tokens: what costs are counted for."""
        rows, columns = (side // self.patch for side in self.sides)
        return rows, columns

    def check(self, width: int, where: str) -> None:
        require_whole("patch", self.patch, where, low=2)
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        if self.patch & (self.patch - 1):
            raise ValueError(f"patch must be a power of two at {where}: got {self.patch}; use "
                             f"{1 << self.patch.bit_length() - 1}")
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
            require_divisor("patch", self.patch, "image", side, where)
        require_divisor("patch / 2", self.patch // 2, "width", width, where)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")

    def _widths(self, width: int) -> tuple[int, ...]:
        halvings = self.patch.bit_length() - 1
        return (self.channels, *(width >> i for i in range(halvings - 1, -1, -1)))

    def axes(self, width: int) -> dict[str, Param]:
        widths, found = self._widths(width), dict[str, Param]()
        dims = [axis("channels", self.channels), *(axis(f"stem{i}", size) for i, size in enumerate(widths[1:-1])),
                axis("width", width)]
        for i, (before, out) in enumerate(zip(dims, dims[1:], strict=False)):
            taps = (axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre"))
            place = f"layers.{len(widths) - 1}_{i}"
            found |= {f"{place}.weight": param(out, before, *taps), **batch_norm_axes(f"{place}.norm", out, self.folded)}
        return found

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        places = [name.removesuffix(".weight") for name, declared in self.axes(width).items() if len(declared.dims) == 4]
        return {f"{place}.norm": f"{place}.weight" for place in places}

    def build(self, width: int) -> nn.Module:
        return HalvingConvolutions(self._widths(width), self.activation, bool(self.last), bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """All convolutions of one image, whatever `length` says."""
        (rows, columns), widths = self.sides, self._widths(width)
        return float(sum((rows >> i) * (columns >> i) * 9 * widths[i - 1] * widths[i] for i in range(1, len(widths))))

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
