"""PiT: a vision transformer whose tokens get fewer and wider by pooling layers, as those of a convolutional network.

Rethinking Spatial Dimensions of Vision Transformers (Heo et al., 2021). Class scores come from a class token. Matrices and
filters have no biases: under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.token_pooling import TokenPooling
from ..operator import Source
from ..operators.embedding import PatchEmbedding
from ..operators.layernorm import LayerNorm
from ..operators.pooled_head import PooledHead
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, joined
from .sizes import at_size, only
from .vit import block

__all__ = ["SIZES", "fixed", "space"]

source = Source("Rethinking Spatial Dimensions of Vision Transformers", 2021, systems=("S172",))

# size of a head, heads and layers per stage, patch and the window around it
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, int]] = {
    "tiny": (8, (2, 4, 8), (1, 1, 1), 4, 8), "ti": (32, (2, 4, 8), (2, 6, 4), 8, 16), "xs": (48, (2, 4, 8), (2, 6, 4), 8, 16),
    "s": (48, (3, 6, 12), (2, 6, 4), 8, 16), "b": (64, (4, 8, 16), (3, 6, 4), 7, 14)}


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4) -> Space:
    """Three stages: the width of the first, their depths, and per layer heads and the MLP's size."""
    layers = [(repeat(block(choice(heads, 2 * heads), choice(2, 4)), times=integer(1, 3)),) for heads in (1, 2, 4)]
    embed: Any = PatchEmbedding(patch, channels, image, kernel=2 * patch, padded=False, class_token=True)
    return Space(embed=embed, width=16, head=PooledHead(classes, pool="class"), norm=LayerNorm(), body=joined(
        layers, [TokenPooling(width=choice(16, 32), class_token=True), TokenPooling(width=64, class_token=True)]))


def fixed(size: str = "tiny") -> Architecture:
    """PiT-"ti" (4.9M), "xs" (10.6M), "s" (23.5M) or "b" (73.8M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    head_dim, heads, depths, patch, kernel = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    layers = [(repeat(block(each), times=depth),) for each, depth in zip(heads, depths, strict=True)]
    between = [TokenPooling(width=each * head_dim, class_token=True) for each in heads[1:]]
    embed = PatchEmbedding(patch, images.channels, images.image, kernel=kernel, padded=False, class_token=True)
    return only(embed=embed, width=heads[0] * head_dim, body=joined(layers, between),
                head=PooledHead(images.classes, pool="class"), norm=LayerNorm())
