"""Frames of a spectrogram to a quarter as many tokens, by a convolution and a depthwise separable one.

Legend: B batch, L frames, N features of a frame, D width, T tokens (L / 4).
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
from .depthwise_conv2d import square_taps

__all__ = ["FrameConvEmbedding", "SeparableSubsampling"]


class SeparableSubsampling(nn.Module):
    """Over time and features: 3 x 3 at stride 2, ReLU, 3 x 3 per channel at stride 2, a matrix, ReLU; then a token's
    N / 4 features of D channels become one vector. Frames at the end that fill no token are left out."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.conv = nn.Parameter(torch.empty(width, 3, 3))
        self.taps = nn.Parameter(torch.empty(width, 3, 3))
        self.point = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(features // 4 * width, width, bias=False)

    def forward(self, frames_BLN: Tensor) -> Tensor:
        # One zero behind the last frame and feature, none before: an even number of frames is halved exactly.
        h_BDLN = F.relu(F.conv2d(F.pad(frames_BLN, (0, 1, 0, 1))[:, None], self.conv[:, None], stride=2))
        h_BDTN = F.conv2d(F.pad(h_BDLN, (0, 1, 0, 1)), self.taps[:, None], stride=2, groups=len(self.taps))
        h_BTND = F.relu(self.point(h_BDTN.permute(0, 2, 3, 1)))
        x_BTD: Tensor = self.project(h_BTND.flatten(2))
        return x_BTD


@dataclass(frozen=True)
class FrameConvEmbedding(Operator):
    """Squeezeformer (Kim et al., 2022): depthwise separable subsampling. features (B, frames, features) to
    (B, frames / 4, width).

    features: numbers per frame, a multiple of 4, such as 80 mel bands. Without biases.
    """

    features: Any = 80
    kind: ClassVar[str] = "embedding"
    stack: ClassVar[int] = 4
    fixed: ClassVar[Mapping[str, str]] = {"bands": "a part of the spectrum"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Squeezeformer: An Efficient Transformer for Automatic Speech Recognition", 2022,
                                      options=("S127",))

    def check(self, width: int, where: str) -> None:
        require_whole("features", self.features, where)
        if self.features % 4:
            raise ValueError(f"features must be a multiple of 4 at {where}: got {self.features}; use "
                             f"{max(self.features // 4 * 4, 4)} or {self.features // 4 * 4 + 4}")

    def axes(self, width: int) -> dict[str, Param]:
        inner, point = axis("filters", width), axis("channels", width)
        return {"conv": square_taps(inner, 3), "taps": square_taps(inner, 3), "point.weight": param(point, inner),
                "project.weight": param(axis("width", width), axis("bands", self.features // 4) * point)}

    def build(self, width: int) -> nn.Module:
        return SeparableSubsampling(self.features, width)

    def macs(self, width: int, length: int) -> float:
        """Of every token; `length` counts tokens, not frames."""
        bands = self.features // 4
        return float(length * bands * width * (4 * 9 + 9 + 2 * width))

    def decode_macs(self, width: int, length: int) -> float:
        return 0.0
