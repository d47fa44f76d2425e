"""LIT: a pyramid whose early stages hold feed-forward layers alone, with tokens merged at predicted places.

Less is More: Pay Less Attention in Vision Transformers (Pan et al., 2021), in the sizes with relative positions: the late
stages attend over their whole grid, with a bias per offset. Matrices have no biases: under 1 % fewer parameters than
published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.deformable_merging import DeformableMerging
from ..operator import Source
from ..operators.head import ClassifierHead
from ..operators.identity import Identity
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.window_attention import WindowAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, joined
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Less is More: Pay Less Attention in Vision Transformers", 2021, systems=("S214",))

# width of the first stage (it doubles), layers per stage, size of a head
SIZES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "tiny": (16, (1, 1, 1, 1), 16), "s": (96, (2, 2, 6, 2), 32), "m": (96, (2, 2, 18, 2), 32), "b": (128, (2, 2, 18, 2), 32)}


def block(heads: Any = None, side: Any = None, ratio: Any = 4) -> Block:
    """One layer: attention over a grid of `side` x `side` and a feed-forward layer, or without heads that layer alone."""
    mixer = Identity() if heads is None else WindowAttention(heads=heads, window=side)
    return Block(mixer=mixer, channel=MLP(ratio=ratio), norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer whether it attends, and the MLP's size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(Block(mixer=choice(Identity(), WindowAttention(heads=2, window=image // patch // 2**stage)),
                            channel=MLP(ratio=choice(2, 4)), norm=LayerNorm()), times=integer(1, 3)),) for stage in range(3)]
    return Space(embed=images.overlapping(patch), width=choice(16, 32),
                 body=joined(layers, [DeformableMerging(width=choice(32, 64)), DeformableMerging(width=choice(64, 96))]),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """LIT-"s" (27M), "m" (48M) or "b" (86M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    first, depths, head_dim = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    layers = []
    for stage, depth in enumerate(depths):
        attends = {"heads": first * 2**stage // head_dim, "side": -(-images.image // images.patch // 2**stage)}
        layers.append((repeat(block(**(attends if stage > 1 else {})), times=depth),))
    between = [DeformableMerging(width=first * 2**stage) for stage in range(1, len(depths))]
    return only(embed=images.overlapping(images.patch), width=first, body=joined(layers, between),
                head=ClassifierHead(images.classes), norm=LayerNorm())
