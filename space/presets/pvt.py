"""PVT: a pyramid of attention to a reduced grid.

Pyramid Vision Transformer (Wang et al., 2021). Positions are learned at the first stage alone (at each in the paper),
class scores come from the mean token, matrices have no biases, and the patch embeddings no norms: together up to 2 %
fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.reduced_attention import ReducedAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

WIDTHS, HEADS, RATIOS, REDUCTIONS = (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1)
# layers per stage
SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (1, 1, 1, 1), "t": (2, 2, 2, 2), "s": (3, 4, 6, 3), "m": (3, 4, 18, 3), "l": (3, 8, 27, 3)}


def block(heads: Any, reduction: Any, ratio: Any) -> Block:
    """One layer."""
    return Block(mixer=ReducedAttention(heads=heads, reduction=reduction), channel=MLP(ratio=ratio), norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer heads, reduction and the MLP's size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(block(choice(1, 2), reduction, choice(2, 4)), times=integer(1, 3)),)
              for reduction in (choice(2, 4, 7), choice(2, 4), choice(1, 2))]
    return Space(embed=images.grid(position=True), width=choice(16, 32),
                 body=stages((None, choice(32, 64), choice(64, 96)), layers), head=ClassifierHead(classes),
                 norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """PVT "t" (13M), "s" (24M), "m" (44M) or "l" (61M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    depths = at_size(SIZES, size)
    images, widths = (SMALL_IMAGES, (16, 32, 40, 64)) if size == "tiny" else (IMAGENET, WIDTHS)
    layers = [(repeat(block(heads, reduction, ratio), times=depth),)
              for heads, reduction, ratio, depth in zip(HEADS, REDUCTIONS, RATIOS, depths, strict=True)]
    return only(embed=images.grid(position=True), width=widths[0], body=stages(widths, layers),
                head=ClassifierHead(images.classes), norm=LayerNorm())
