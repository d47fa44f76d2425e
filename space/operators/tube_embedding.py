"""Videos to tokens: overlapping boxes of pixels of a few frames each.

Legend: B batch, C channels, L frames, F frames of tokens, H and W rows and columns, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_divisor, require_whole
from .spatial import padding

__all__ = ["TubeEmbedding", "VideoTubes"]


class VideoTubes(nn.Module):
    """A strided convolution, a vector per place and one per frame; frames one under the other, or a class token and all."""

    def __init__(self, channels: int, width: int, stride: tuple[int, int, int], kernel: tuple[int, int, int],
                 places: tuple[int, int, int], position: bool, class_token: bool):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width, channels, *kernel))
        self.position = nn.Parameter(torch.empty(*places[1:], width)) if position else None
        self.frame_position = nn.Parameter(torch.empty(places[0], width)) if position else None
        self.token = nn.Parameter(torch.empty(width)) if class_token else None

    def forward(self, video_BCLHW: Tensor) -> Tensor:
        sizes = zip(reversed(video_BCLHW.shape[2:]), reversed(self.stride), reversed(self.weight.shape[2:]), strict=True)
        pads = [p for size, stride, kernel in sizes for p in padding(size, stride, kernel)]
        x_BFHWD = F.conv3d(F.pad(video_BCLHW, pads), self.weight, None, self.stride).movedim(1, -1)
        if self.position is not None and self.frame_position is not None:
            x_BFHWD = x_BFHWD + self.position + self.frame_position[:, None, None]
        if self.token is None:
            return x_BFHWD.flatten(1, 2)
        return torch.cat([self.token.expand(len(x_BFHWD), 1, -1), x_BFHWD.flatten(1, 3)], dim=1)


@dataclass(frozen=True)
class TubeEmbedding(Operator):
    """The cubes of MViT (Fan et al., 2021). video (B, channels, frames, H, W) to a grid (B, frames / tube * H / patch,
    W / patch, width), frames one under the other.

    patch: pixels a side that become one token; tube: frames that do. kernel, tube_kernel: how many it sees, by default as
    many; more overlap, with zeros outside the video (7 for 4 and 3 for 2 in the paper). channels, image, frames: of the
    videos, image being a side in pixels or (height, width). position: whether each place and each frame has a learned vector.
    class_token: a learned token goes before all, and what comes out is a sequence (B, 1 + tokens, width).
    """

    patch: Any = 4
    tube: Any = 2
    channels: Any = 3
    image: Any = 224
    frames: Any = 16
    kernel: Any = None
    tube_kernel: Any = None
    position: Any = True
    class_token: Any = False
    kind: ClassVar[str] = "embedding"
    fixed: ClassVar[Mapping[str, str]] = {"channels": "a colour of the video"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Multiscale Vision Transformers", 2021, options=("S195",))

    @property
    def sides(self) -> tuple[int, int, int]:
        """(frames, height, width): what comes in after the channels."""
        height, width = self.image if isinstance(self.image, tuple) else (self.image, self.image)
        return self.frames, height, width

    @property
    def grid(self) -> bool:
        """Whether what comes out is one."""
        return not self.class_token

    @property
    def places(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of tokens."""
        frames, height, width = self.sides
        return frames // self.tube, height // self.patch, width // self.patch

    @property
    def length(self) -> Length:
        """(rows of all frames, columns), or with a class token the number of tokens."""
        frames, rows, columns = self.places
        return 1 + frames * rows * columns if self.class_token else (frames * rows, columns)

    @property
    def kernels(self) -> tuple[int, int, int]:
        """Along frames, rows and columns."""
        side = self.kernel or self.patch
        return self.tube_kernel or self.tube, side, side

    def check(self, width: int, where: str) -> None:
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        frames, *sides = self.sides
        for name, value, step in (("frames", frames, "tube"), *(("image", side, "patch") for side in sides)):
            require_whole(name, value, where)
            require_whole(step, getattr(self, step), where)
            require_divisor(step, getattr(self, step), name, value, where)
        for name, step in (("kernel", "patch"), ("tube_kernel", "tube")):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), where, low=getattr(self, step),
                              instead="use None for what does not overlap")

    def axes(self, width: int) -> dict[str, Param]:
        d, small = axis("width", width), Init("normal", gain=0.02)
        taps = (axis(name, size, "centre")
                for name, size in zip(("tap_frames", "tap_rows", "tap_columns"), self.kernels, strict=True))
        found = {"weight": param(d, axis("channels", self.channels), *taps)}
        frames, rows, columns = (axis(name, size, "spread")
                                 for name, size in zip(("frames", "rows", "columns"), self.places, strict=True))
        if self.position:
            found |= {"position": param(rows, columns, d, init=small), "frame_position": param(frames, d, init=small)}
        return found | ({"token": param(d, init=small)} if self.class_token else {})

    def build(self, width: int) -> nn.Module:
        return VideoTubes(self.channels, width, (self.tube, self.patch, self.patch), self.kernels, self.places,
                          bool(self.position), bool(self.class_token))

    def macs(self, width: int, length: Length) -> float:
        """The convolution of one video, whatever `length` says."""
        return float(math.prod(self.places) * math.prod(self.kernels) * self.channels * width)

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
