"""DiNAT: a pyramid of neighbourhood attention, without gaps and with gaps in turn.

Dilated Neighborhood Attention Transformer (Hassani and Shi, 2022). The stem is one convolution of 7 x 7 at stride 4, which
covers what two of 3 x 3 at stride 2 without an activation between them see in the paper; without biases of matrices and
without layer scale: within 1 % of the published parameters.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.merging import ConvEmbedding
from ..operator import Source
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.neighbourhood_attention import NeighbourhoodAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, joined
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Dilated Neighborhood Attention Transformer", 2022, systems=("S012",))

# width of the first stage (it doubles), layers per stage, heads of the first stage (they double), ratio of the MLPs
SIZES: dict[str, tuple[int, tuple[int, ...], int, int]] = {
    "tiny": (16, (2, 2, 2), 1, 3),
    "m": (64, (3, 4, 6, 5), 2, 3), "t": (64, (3, 4, 18, 5), 2, 3), "s": (96, (3, 4, 18, 5), 3, 2),
    "b": (128, (3, 4, 18, 5), 4, 2), "l": (192, (3, 4, 18, 5), 6, 2)}
# the largest step of each stage: its side over the kernel of 7, at 224 pixels and at 28
STEPS = {4: (8, 4, 2, 1), 3: (2, 1, 1)}


def block(heads: Any, kernel: Any = 7, dilation: Any = 1, ratio: Any = 3) -> Block:
    """One layer."""
    return Block(mixer=NeighbourhoodAttention(heads=heads, kernel=kernel, dilation=dilation), channel=MLP(ratio=ratio),
                 norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer the neighbourhood, its gaps and the MLP's size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(block(heads, choice(3, 5), dilation, choice(2, 3)), times=integer(1, 3)),)
              for heads, dilation in ((2, choice(1, 2, 4)), (4, choice(1, 2)), (4, 1))]
    return Space(embed=images.overlapping(2 * patch - 1), width=choice(16, 32),
                 body=joined(layers, [ConvEmbedding(width=choice(32, 64)), ConvEmbedding(width=choice(64, 96))]),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """DiNAT-Mini "m" (20M), "t" (28M), "s" (51M), "b" (90M) or "l" (200M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    first, depths, heads, ratio = at_size(SIZES, size)
    images, kernel = (SMALL_IMAGES, 5) if size == "tiny" else (IMAGENET, 7)
    layers = [tuple(block(heads * 2**i, kernel, step if layer % 2 else 1, ratio) for layer in range(depth))
              for i, (depth, step) in enumerate(zip(depths, STEPS[len(depths)], strict=True))]
    between = [ConvEmbedding(width=first * 2**i) for i in range(1, len(depths))]
    return only(embed=images.overlapping(2 * images.patch - 1), width=first, body=joined(layers, between),
                head=ClassifierHead(images.classes), norm=LayerNorm())
