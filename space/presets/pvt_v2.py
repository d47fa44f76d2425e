"""PVT v2: a pyramid of overlapping patches, attention to a reduced grid, and feed-forward layers that filter.

PVT v2: Improved Baselines with Pyramid Vision Transformer (Wang et al., 2021). There are no learned positions, class scores
come from the mean token, and a layer norm ends every stage. Matrices and filters have no biases: up to 2 % fewer parameters
than published. "b2-li" attends to a grid of 7 by 7 in every layer.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.merging import ConvEmbedding
from ..macros.stream_norm import StreamNorm
from ..operator import Source
from ..operators.conv_mlp import ConvMLP
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.linear_reduced import LinearReducedAttention
from ..operators.reduced_attention import ReducedAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("PVT v2: Improved Baselines with Pyramid Vision Transformer", 2021, systems=("S211",))

HEADS, RATIOS, REDUCTIONS = (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1)
SMALL, LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
# widths and layers per stage, side of the grid of keys where it is fixed
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int | None]] = {
    "tiny": ((16, 32, 40, 64), (1, 1, 1, 1), None),
    "b0": (SMALL, (2, 2, 2, 2), None), "b1": (LARGE, (2, 2, 2, 2), None), "b2": (LARGE, (3, 4, 6, 3), None),
    "b2-li": (LARGE, (3, 4, 6, 3), 7), "b3": (LARGE, (3, 4, 18, 3), None), "b4": (LARGE, (3, 8, 27, 3), None),
    "b5": (LARGE, (3, 6, 40, 3), None)}


def block(heads: Any, reduction: Any, ratio: Any, side: Any = None) -> Block:
    """One layer; with a `side`, of linear attention."""
    mixer = ReducedAttention(heads, reduction) if side is None else LinearReducedAttention(heads, side)
    return Block(mixer=mixer, channel=ConvMLP(ratio, rectified=side is not None), norm=LayerNorm())


def body(widths: tuple[Any, ...], layers: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The stages, each behind an overlapping embedding but the first, each but the last with a norm at its end."""
    found = [*layers[0]]
    for width, inner in zip(widths[1:], layers[1:], strict=True):
        found += [StreamNorm(LayerNorm()), ConvEmbedding(width=width), *inner]
    return tuple(found)


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer heads, either kind of reduction and the hidden size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(Block(mixer=choice(ReducedAttention(choice(1, 2), reduction), LinearReducedAttention(choice(1, 2), 3)),
                            channel=ConvMLP(choice(2, 4)), norm=LayerNorm()), times=integer(1, 3)),)
              for reduction in (choice(2, 4, 7), choice(2, 4), choice(1, 2))]
    return Space(embed=images.overlapping(2 * patch - 1), width=choice(16, 32),
                 body=body((None, choice(32, 64), choice(64, 96)), layers), head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """PVT v2-"b0" (3.7M), "b1" (14M), "b2" (25M), "b2-li" (23M), "b3" (45M), "b4" (63M) or "b5" (82M), for 224 pixels and
    1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths, side = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    layers = [(repeat(block(heads, reduction, ratio if size != "b5" else 4, side), times=depth),)
              for heads, reduction, ratio, depth in zip(HEADS, REDUCTIONS, RATIOS, depths, strict=True)]
    return only(embed=images.overlapping(2 * images.patch - 1), width=widths[0], body=body(widths, layers),
                head=ClassifierHead(images.classes), norm=LayerNorm())
