"""Pixels to tokens by convolutions and max pooling.

Legend: B batch, C channels in, E channels out, H and W rows and columns, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_whole
from .places import sine_places
from .spatial import require_odd

__all__ = ["ConvTokenizer", "PooledConvolution", "PooledConvolutions"]

POSITIONS = ("learned", "sine")


class PooledConvolution(nn.Module):
    """`max_pool(relu(conv(x)))`, the maximum over 3 x 3 places at stride 2: [B, C, H, W] to [B, E, H', W']."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BEHW = F.relu(F.conv2d(x_BCHW, self.weight, stride=self.stride, padding=self.weight.shape[-1] // 2))
        return F.max_pool2d(y_BEHW, 3, 2, 1)


class PooledConvolutions(nn.Module):
    """One after the other, then the grid as a sequence, with a vector per place."""

    def __init__(self, widths: tuple[int, ...], kernel: int, stride: int, rows: int, columns: int, position: str | None):
        super().__init__()
        self.position = position
        depth = len(widths) - 1              # in the names: tokenisers of different depths share nothing
        self.layers = nn.ModuleDict({f"{depth}_{i}": PooledConvolution(widths[i], widths[i + 1], kernel, stride)
                                     for i in range(depth)})
        self.places = nn.Parameter(torch.empty(rows, columns, widths[-1])) if position == "learned" else None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BDHW = pixels_BCHW
        for layer in self.layers.values():
            x_BDHW = layer(x_BDHW)
        x_BTD = x_BDHW.flatten(2).transpose(1, 2)
        if self.places is not None:
            return x_BTD + self.places.flatten(0, 1)
        return x_BTD + sine_places(x_BTD.shape[1], x_BTD.shape[2], x_BTD) if self.position == "sine" else x_BTD


@dataclass(frozen=True)
class ConvTokenizer(Operator):
    """The convolutional tokeniser of CCT (Hassani et al., 2021). pixels (B, channels, H, W) to (B, tokens, width).

    channels: of the images. image: their side, or (height, width). layers: how many convolutions, each with a ReLU and a
    maximum over 3 x 3 places at stride 2. kernel, stride: of the convolutions, the kernel odd; in the authors' code 3 at
    stride 1 and 7 at stride 2. between: channels between convolutions. position: "learned", "sine" or None: whether each
    place has a vector, learned or of sines. CCT-7/3x1 is one layer of kernel 3, a transformer and
    `PooledHead(pool="attention")`.
    """

    channels: Any = 3
    image: Any = 32
    layers: Any = 1
    kernel: Any = 3
    stride: Any = 1
    between: Any = 64
    position: Any = "learned"
    kind: ClassVar[str] = "embedding"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Escaping the Big Data Paradigm with Compact Transformers", 2021, options=("S416",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Colours, and the channels of sines."""
        return {"channels": "a colour of the image"} | (
            {"width": "a wave of the position"} if self.position == "sine" else {})

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of the outputs of every convolution and of every pooling, in order."""
        found, size = [], self.sides
        for step in (self.stride, 2) * self.layers:
            size = -(-size[0] // step), -(-size[1] // step)
            found.append(size)
        return found

    @property
    def length(self) -> Length:
        """Tokens of an image: what costs are counted for."""
        rows, columns = self.grids()[-1]
        return rows * columns

    def check(self, width: int, where: str) -> None:
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
        for name in ("layers", "stride", "between"):
            require_whole(name, getattr(self, name), where)
        require_odd("kernel", self.kernel, where)
        if self.position is not None and self.position not in POSITIONS:
            raise ValueError(f"{unknown('position', self.position, POSITIONS)} (at {where}); None for none")

    def _widths(self, width: int) -> tuple[int, ...]:
        return (self.channels, *(self.between,) * (self.layers - 1), width)

    def axes(self, width: int) -> dict[str, Param]:
        d, found = axis("width", width), dict[str, Param]()
        dims = [axis("channels", self.channels), *(axis(f"between{i}", self.between) for i in range(self.layers - 1)), d]
        taps = (axis("tap_rows", self.kernel, "centre"), axis("tap_columns", self.kernel, "centre"))
        for i, (before, out) in enumerate(zip(dims, dims[1:], strict=False)):
            found[f"layers.{self.layers}_{i}.weight"] = param(out, before, *taps, init=Init(gain=2**0.5))
        if self.position == "learned":
            rows, columns = self.grids()[-1]
            found["places"] = param(axis("rows", rows, "spread"), axis("columns", columns, "spread"), d,
                                    init=Init("normal", gain=0.02))
        return found

    def build(self, width: int) -> nn.Module:
        return PooledConvolutions(self._widths(width), self.kernel, self.stride, *self.grids()[-1], self.position)

    def macs(self, width: int, length: Length) -> float:
        """All convolutions of one image, whatever `length` says."""
        widths, total = self._widths(width), 0
        for i, (rows, columns) in enumerate(self.grids()[::2]):
            total += rows * columns * self.kernel**2 * widths[i] * widths[i + 1]
        return float(total)

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
