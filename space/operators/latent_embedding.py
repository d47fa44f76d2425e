"""Images or latents to a grid of their places by one convolution.

Legend: B batch, C channels, H and W rows and columns, S rows of a source, F its features, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_whole
from .spatial import require_odd

__all__ = ["LatentEmbedding", "LatentPlaces"]


class LatentPlaces(nn.Module):
    """A convolution at stride 1, [B, C, H, W] to [B, H, W, D]; features [B, S, F], a source, pass as they are."""

    def __init__(self, channels: int, kernel: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        if latents_BCHW.ndim < 4:
            return latents_BCHW
        x_BDHW = F.conv2d(latents_BCHW, self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        return x_BDHW.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class LatentEmbedding(Operator):
    """The first convolution of a denoising U-Net (Rombach et al., 2022): (B, channels, H, W) to a grid (B, H, W, width).

    channels: of the latents, or colours. image: their side, or (height, width). kernel: side of the square kernel, odd. A
    source of features, (B, rows, features), passes as it is, for `Prompted` layers.
    """

    channels: Any = 4
    image: Any = 32
    kernel: Any = 3
    kind: ClassVar[str] = "embedding"
    grid: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"channels": "a channel of the latents"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("High-Resolution Image Synthesis with Latent Diffusion Models", 2022)

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    @property
    def length(self) -> Length:
        """(rows, columns): what costs are counted for."""
        return self.sides

    def check(self, width: int, where: str) -> None:
        require_whole("channels", self.channels, where)
        for side in self.sides:
            require_whole("image", side, where, instead="give a side, or (height, width)")
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, taps = axis("width", width), [axis(name, self.kernel, "centre") for name in ("tap_rows", "tap_columns")]
        return {"weight": param(d, axis("channels", self.channels), *taps), "bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return LatentPlaces(self.channels, self.kernel, width)

    def macs(self, width: int, length: Length) -> float:
        """The convolution of one image, whatever `length` says."""
        rows, columns = self.sides
        return float(rows * columns * self.kernel**2 * self.channels * width)

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
