"""What enters the residual stream: tokens or image patches.

Legend: B batch, T tokens, D width, C channels, H and W pixels, P pixels of one patch (all channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["ImagePatches", "PatchEmbedding", "TokenEmbedding", "TokenTable"]


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
    """Square patches, projected, plus a learned vector per place; left to right, top to bottom."""

    def __init__(self, patch: int, channels: int, rows: int, columns: int, width: int):
        super().__init__()
        self.patch = patch
        self.projection = nn.Linear(channels * patch * patch, width, bias=False)
        self.position = nn.Parameter(torch.empty(rows, columns, width))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches_BPT = F.unfold(pixels_BCHW, self.patch, stride=self.patch)
        x_BTD: Tensor = self.projection(patches_BPT.transpose(1, 2))
        return x_BTD + self.position.flatten(0, 1)


@dataclass(frozen=True)
class PatchEmbedding(Operator):
    """An Image is Worth 16x16 Words (Dosovitskiy et al., 2020). pixels (B, channels, H, W) to (B, patches, width).

    patch: side of the square patches. channels: of the images. image: their side, or (height, width).
    """

    patch: Any = 4
    channels: Any = 1
    image: Any = 28
    kind: ClassVar[str] = "embedding"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
                                      2020)

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    def check(self, width: int, where: str) -> None:
        require_whole("patch", self.patch, where)
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
            if side % self.patch:
                good = [p for p in range(1, side + 1) if all(s % p == 0 for s in self.sides)]
                raise ValueError(f"patch must divide image at {where}: got {self.patch} and {self.image}; "
                                 f"use one of {', '.join(map(str, good))}")

    def axes(self, width: int) -> dict[str, Param]:
        d, (height, wide) = axis("width", width), self.sides
        down, across = axis("patch_rows", self.patch, "centre"), axis("patch_columns", self.patch, "centre")
        rows, columns = axis("rows", height // self.patch), axis("columns", wide // self.patch)
        return {"position": param(rows, columns, d, init=Init("normal", gain=0.02)),
                "projection.weight": param(d, axis("channels", self.channels) * down * across)}

    def build(self, width: int) -> nn.Module:
        height, wide = self.sides
        return ImagePatches(self.patch, self.channels, height // self.patch, wide // self.patch, width)

    def macs(self, width: int, length: int) -> float:
        """The projection of every patch of one image, whatever `length` says."""
        height, wide = self.sides
        return float(self.channels * height * wide * width)

    def decode_macs(self, width: int, length: int) -> float:
        return 0.0
