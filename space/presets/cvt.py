"""CvT: a pyramid of attention with convolutional projections, and no positions.

CvT: Introducing Convolutions to Vision Transformers (Wu et al., 2021). Class scores come from the mean token (from a class
token of the last stage in the paper), matrices have no biases: under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.merging import ConvEmbedding
from ..operator import Source
from ..operators.conv_attention import ConvAttention
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, joined
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("CvT: Introducing Convolutions to Vision Transformers", 2021, systems=("S032",))

# widths, layers and heads per stage
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((16, 32, 48), (1, 1, 2), (1, 2, 3)),
    "13": ((64, 192, 384), (1, 2, 10), (1, 3, 6)), "21": ((64, 192, 384), (1, 4, 16), (1, 3, 6)),
    "w24": ((192, 768, 1024), (2, 2, 20), (3, 12, 16))}


def block(heads: Any, kernel: Any = 3, kv_stride: Any = 2, ratio: Any = 4) -> Block:
    """One layer."""
    return Block(mixer=ConvAttention(heads=heads, kernel=kernel, kv_stride=kv_stride), channel=MLP(ratio=ratio),
                 norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer heads, filters, the stride of keys and the MLP's size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(block(choice(1, 2), choice(3, 5), choice(1, 2), choice(2, 4)), times=integer(1, 3)),)
              for _ in range(3)]
    return Space(embed=images.overlapping(2 * patch - 1), width=choice(16, 32),
                 body=joined(layers, [ConvEmbedding(width=choice(32, 64)), ConvEmbedding(width=choice(64, 96))]),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """CvT-"13" (20M), "21" (32M) or "w24" (277M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths, heads = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    layers = [(repeat(block(each), times=depth),) for each, depth in zip(heads, depths, strict=True)]
    return only(embed=images.overlapping(2 * images.patch - 1), width=widths[0],
                body=joined(layers, [ConvEmbedding(width=width) for width in widths[1:]]),
                head=ClassifierHead(images.classes), norm=LayerNorm())
