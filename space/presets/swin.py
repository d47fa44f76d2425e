"""Swin: a pyramid of attention inside windows, which shift in every other layer.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021). Without biases of matrices
and without the norm after the stem: under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.stack import Stack
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.window_attention import WindowAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

# width of the first stage (it doubles), pairs of layers per stage, size of a head
SIZES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "tiny": (32, (1, 1), 16),
    "t": (96, (1, 1, 3, 1), 32), "s": (96, (1, 1, 9, 1), 32), "b": (128, (1, 1, 9, 1), 32),
    "l": (192, (1, 1, 9, 1), 32)}


def pair(heads: Any, window: Any, ratio: Any = 4) -> Stack:
    """Two layers: windows, then shifted windows."""
    def layer(shift: bool) -> Block:
        return Block(mixer=WindowAttention(heads=heads, window=window, shift=shift), channel=MLP(ratio=ratio),
                     norm=LayerNorm())
    return Stack((layer(False), layer(True)))


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths, depths in pairs of layers, and per layer the window and the MLP's size."""
    images, depths = Images(image, channels, classes, patch), (integer(1, 2), integer(1, 3), integer(1, 2))
    layers = [(repeat(pair(heads, choice(3, 5, 7), choice(2, 4)), times=depth),)
              for heads, depth in zip((2, 4, 4), depths, strict=True)]
    return Space(embed=images.grid(), width=choice(16, 32),
                 body=stages((None, choice(32, 64), choice(64, 96)), layers, norm=LayerNorm()),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """Swin-"t" (28M), "s" (50M), "b" (88M) or "l" (197M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    first, pairs, head_dim = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    widths = [first * 2**i for i in range(len(pairs))]
    layers = [(repeat(pair(width // head_dim, 7), times=times),) for width, times in zip(widths, pairs, strict=True)]
    return only(embed=images.grid(), width=first, body=stages(widths, layers, norm=LayerNorm()),
                head=ClassifierHead(images.classes), norm=LayerNorm())
