"""What enters the residual stream: tokens, image patches, or frames of features.

Legend: B batch, T tokens, D width, C channels, H and W pixels, P pixels of one patch (all channels), L frames,
F features of one frame.
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
from .depthwise_conv2d import filtered, square_taps
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import padding
from .split_depthwise import fourier_places

__all__ = ["FrameEmbedding", "ImagePatches", "PatchEmbedding", "StackedFrames", "TokenEmbedding", "TokenTable"]


class TokenTable(nn.Module):
    """A row of `weight` per token, times sqrt(width): rows of a size that also suits a tied head enter at unit size."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.embedding(ids_BT, self.weight) * math.sqrt(self.weight.shape[1])


@dataclass(frozen=True)
class TokenEmbedding(Operator):
    """Learned vectors of `vocab` tokens, scaled by sqrt(width) (Vaswani et al., 2017). ids (B, T) to (B, T, width)."""

    vocab: Any
    kind: ClassVar[str] = "embedding"
    fixed: ClassVar[Mapping[str, str]] = {"vocab": "a row is a token"}
    source: ClassVar[Source] = Source("Attention Is All You Need", 2017)

    def check(self, width: int, where: str) -> None:
        require_whole("vocab", self.vocab, where, instead="use 256 for bytes")

    def axes(self, width: int) -> dict[str, Param]:
        return {"weight": param(axis("vocab", self.vocab), axis("width", width))}

    def build(self, width: int) -> nn.Module:
        return TokenTable(self.vocab, width)

    def macs(self, width: int, length: int) -> float:
        """None: a look-up multiplies nothing."""
        return 0.0

    def decode_macs(self, width: int, length: int) -> float:
        return 0.0


class ImagePatches(nn.Module):
    """Square patches, projected, plus a vector per place, learned or filtered sines; left to right, top to bottom, or as a
    grid.

    A kernel above the patch takes in pixels around it, zeros outside the image where it is padded. A norm follows the
    projection; a learned class token goes before all.
    """

    def __init__(self, patch: int, channels: int, rows: int, columns: int, width: int, position: bool = True,
                 grid: bool = False, kernel: int | None = None, norm: bool = False, class_token: bool = False,
                 padded: bool = True, waves: bool = False):
        super().__init__()
        self.patch, self.grid = patch, grid
        self.kernel, self.padded = kernel or patch, padded
        self.token = nn.Parameter(torch.empty(width)) if class_token else None
        self.projection = nn.Linear(channels * self.kernel**2, width, bias=False)
        self.norm = LayerNormalisation(width) if norm else None
        self.position = nn.Parameter(torch.empty(rows, columns, width)) if position else None
        self.position_taps = nn.Parameter(torch.empty(width, 3, 3)) if waves else None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        sides = pixels_BCHW.shape[2:]
        if self.padded and self.kernel > self.patch:
            down, across = (padding(size, self.patch, self.kernel) for size in pixels_BCHW.shape[2:])
            pixels_BCHW = F.pad(pixels_BCHW, (*across, *down))
        patches_BPT = F.unfold(pixels_BCHW, self.kernel, stride=self.patch)
        x_BTD: Tensor = self.projection(patches_BPT.transpose(1, 2))
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        if self.position is not None:
            x_BTD = x_BTD + self.position.flatten(0, 1)
        inside = 0 if self.padded else self.kernel - self.patch
        places = tuple(-(-(size - inside) // self.patch) for size in sides)              # at whatever resolution
        if self.position_taps is not None:
            places_1HWD = fourier_places(torch.unflatten(x_BTD, 1, places), x_BTD.shape[-1] // 2)[None]
            x_BTD = x_BTD + filtered(places_1HWD, self.position_taps).flatten(1, 2)
        if self.token is not None:
            x_BTD = torch.cat([self.token.expand(len(x_BTD), 1, -1), x_BTD], dim=1)
        return torch.unflatten(x_BTD, 1, places) if self.grid else x_BTD


@dataclass(frozen=True)
class PatchEmbedding(Operator):
    """An Image is Worth 16x16 Words (Dosovitskiy et al., 2020). pixels (B, channels, H, W) to (B, patches, width).

    patch: side of the square patches. channels: of the images. image: their side, or (height, width). grid: hand on
    (B, rows, columns, width) for operators on grids. position: whether each place has a learned vector; "conv" for one that
    suits every resolution, filters of 3 x 3 over sines of a place (ResFormer, Tian et al., 2023). kernel: side of
    overlapping windows around the patches, by default the patch; norm: whether a layer norm follows (both: CvT, Wu et
    al., 2021). padded: whether there are zeros around the image for windows at its edges; False for windows inside it alone
    (PiT, Heo et al., 2021). class_token: whether a learned token goes before the patches, which `PooledHead(pool="class")`
    reads; its position is in it.
    """

    patch: Any = 4
    channels: Any = 1
    image: Any = 28
    grid: Any = False
    position: Any = True
    kernel: Any = None
    norm: Any = False
    class_token: Any = False
    padded: Any = True
    kind: ClassVar[str] = "embedding"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
                                      2020)

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Colours, and the channels of sines."""
        return {"channels": "a colour of the image"} | (
            {"width": "a wave of the position"} if self.position == "conv" else {})

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        inside = 0 if self.padded else (self.kernel or self.patch) - self.patch
        rows, columns = ((side - inside) // self.patch for side in self.sides)
        return rows, columns

    @property
    def length(self) -> Length:
        """Tokens of an image, or (rows, columns) of a grid of them: what costs are counted for."""
        rows, columns = self.places
        return (rows, columns) if self.grid else rows * columns + bool(self.class_token)

    def check(self, width: int, where: str) -> None:
        require_whole("patch", self.patch, where)
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        if self.kernel is not None:
            require_whole("kernel", self.kernel, where, low=self.patch, instead="use None for patches that do not overlap")
        if self.position == "conv":
            require_divisor("4", 4, "width", width, where)
        elif self.position not in (True, False):
            raise ValueError(f"position is True, False or 'conv' at {where}: got {self.position!r}")
        if self.grid and self.class_token:
            raise ValueError(f"a class token has no place on a grid at {where}: got grid=True and class_token=True; leave "
                             "grid out")
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
            if not self.padded and (side < (self.kernel or 0) or (side - (self.kernel or 0)) % self.patch):
                raise ValueError(f"windows inside the image fill it at {where}: got kernel={self.kernel}, patch={self.patch}"
                                 f" for {side} pixels; patch must divide what is left of the image beside one window")
            if self.padded and side % self.patch:
                good = [p for p in range(1, side + 1) if all(s % p == 0 for s in self.sides)]
                raise ValueError(f"patch must divide image at {where}: got {self.patch} and {self.image}; "
                                 f"use one of {', '.join(map(str, good))}")

    def axes(self, width: int) -> dict[str, Param]:
        d, kernel = axis("width", width), self.kernel or self.patch
        down, across = axis("patch_rows", kernel, "centre"), axis("patch_columns", kernel, "centre")
        rows, columns = (axis(name, size, "spread") for name, size in zip(("rows", "columns"), self.places, strict=True))
        token = {"token": param(d, init=Init("normal", gain=0.02))} if self.class_token else {}
        table = {"position": param(rows, columns, d, init=Init("normal", gain=0.02))} if self.position else {}
        table = {"position_taps": square_taps(d, 3)} if self.position == "conv" else table
        norm = {f"norm.{name}": part for name, part in LayerNorm().axes(width).items()} if self.norm else {}
        return {**token, **table, **norm, "projection.weight": param(d, axis("channels", self.channels) * down * across)}

    def build(self, width: int) -> nn.Module:
        return ImagePatches(self.patch, self.channels, *self.places, width, bool(self.position) and self.position != "conv",
                            bool(self.grid), self.kernel, bool(self.norm), bool(self.class_token), bool(self.padded),
                            self.position == "conv")

    def macs(self, width: int, length: int) -> float:
        """The projection of every patch of one image, and filters of its places, whatever `length` says."""
        per_place = self.channels * (self.kernel or self.patch) ** 2 + (9 if self.position == "conv" else 0)
        return float(math.prod(self.places) * per_place * width)

    def decode_macs(self, width: int, length: int) -> float:
        return 0.0


class StackedFrames(nn.Module):
    """Every `stack` frames side by side, projected; frames at the end that fill no stack are left out."""

    def __init__(self, features: int, stack: int, width: int):
        super().__init__()
        self.stack = stack
        self.projection = nn.Linear(stack * features, width, bias=False)

    def forward(self, frames_BLF: Tensor) -> Tensor:
        batch, length, features = frames_BLF.shape
        whole_BLF = frames_BLF[:, :length - length % self.stack]
        x_BTD: Tensor = self.projection(whole_BLF.reshape(batch, length // self.stack, self.stack * features))
        return x_BTD


@dataclass(frozen=True)
class FrameEmbedding(Operator):
    """Fast and Accurate Recurrent Neural Network Acoustic Models for Speech Recognition (Sak et al., 2015): stacked
    frames. features (B, frames, features) to (B, frames / stack, width).

    features: numbers per frame, such as 80 mel bands. stack: frames that become one token.
    """

    features: Any = 80
    stack: Any = 4
    kind: ClassVar[str] = "embedding"
    fixed: ClassVar[Mapping[str, str]] = {"features": "an input feature", "stack": "a frame's place in the stack"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Fast and Accurate Recurrent Neural Network Acoustic Models for Speech "
                                      "Recognition", 2015)

    def check(self, width: int, where: str) -> None:
        require_whole("features", self.features, where)
        require_whole("stack", self.stack, where, instead="use 1 for a token per frame")

    def axes(self, width: int) -> dict[str, Param]:
        stacked = axis("stack", self.stack) * axis("features", self.features)
        return {"projection.weight": param(axis("width", width), stacked)}

    def build(self, width: int) -> nn.Module:
        return StackedFrames(self.features, self.stack, width)

    def macs(self, width: int, length: int) -> float:
        """The projection of every token; `length` counts tokens, not frames."""
        return float(length * self.matrix_numel(width))
