"""MViT: a pyramid whose attention pools its queries where a stage begins, and its keys and values everywhere.

Multiscale Vision Transformers (Fan et al., 2021), for images and for videos. Class scores come from a class token. Matrices
and filters have no biases: under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.multiscale import MultiscaleLayer
from ..operator import Source
from ..operators.embedding import PatchEmbedding
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.pooled_head import PooledHead
from ..operators.pooling_attention import PoolingAttention
from ..operators.tube_embedding import TubeEmbedding
from ..plan import Block
from ..space import Space
from .pyramids import SMALL_IMAGES
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Multiscale Vision Transformers", 2021, systems=("S195",))

# width of the first stage (it doubles), layers per stage, stride of keys in the first stage, frames of tokens, classes
SIZES: dict[str, tuple[int, tuple[int, ...], int, int, int]] = {
    "tiny": (16, (1, 1, 1), 4, 1, 10), "b-16": (96, (1, 2, 11, 2), 4, 1, 1000),
    "b-16x4": (96, (1, 2, 11, 2), 8, 8, 400)}


def stage(number: int, depth: int, last: bool, kv_stride: int, width: int, **grid: Any) -> list[MultiscaleLayer]:
    """The layers of a stage: the first pools its queries, the last of a stage doubles the width."""
    keys = max(kv_stride >> number, 1)
    return [MultiscaleLayer(2**number, 2 * width if i + 1 == depth and not last else None, 2 if number and not i else 1, keys,
                            **grid) for i in range(depth)]


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages on a grid: width of the first, depths, and per layer how and at which stride keys are pooled."""
    def layer(heads: int, strides: Any) -> Block:
        return Block(mixer=PoolingAttention(heads, strides, choice(3, 5), choice("conv", "max", "mean")),
                     channel=MLP(choice(2, 4)), norm=LayerNorm())

    embed: Any = PatchEmbedding(patch, channels, image, kernel=2 * patch - 1, grid=True)
    body = (repeat(layer(1, choice(2, 4)), integer(0, 2)), MultiscaleLayer(width=choice(32, 48), kv_stride=4),
            MultiscaleLayer(2, stride=2), repeat(layer(2, choice(1, 2)), integer(0, 2)), MultiscaleLayer(2, width=64),
            MultiscaleLayer(4, stride=2, kv_stride=1), repeat(layer(4, 1), integer(0, 2)))
    return Space(embed=embed, width=choice(16, 24), body=body, head=PooledHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """MViT-"b-16" (37M) for images of 224 pixels and 1,000 classes, "b-16x4" (37M) for videos of 16 frames of 224 pixels and
    400 classes.

    "tiny" is for images of 28 pixels and 10 classes.
    """
    width, depths, kv_stride, frames, classes = at_size(SIZES, size)
    embed: Any = TubeEmbedding(kernel=7, tube_kernel=3, class_token=True)
    if frames == 1:
        embed = PatchEmbedding(4, 3, 224, kernel=7, class_token=True)
    if size == "tiny":
        embed = PatchEmbedding(2, SMALL_IMAGES.channels, SMALL_IMAGES.image, kernel=3, class_token=True)
    layers = [stage(i, depth, i + 1 == len(depths), kv_stride, width << i, frames=frames, class_token=True)
              for i, depth in enumerate(depths)]
    return only(embed=embed, width=width, body=tuple(layer for inner in layers for layer in inner),
                head=PooledHead(classes, pool="class"), norm=LayerNorm())
