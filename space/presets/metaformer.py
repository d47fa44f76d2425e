"""MetaFormer: a pyramid in which any token mixer may stand; PoolFormer has pooling.

MetaFormer Is Actually What You Need for Vision (Yu et al., 2022). The stem projects 4 x 4 patches (7 x 7 at stride 4 in
the paper), norms are over channels (channels and places in the paper), and there is no layer scale: together under 1 %
fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operators.attention import Attention
from ..operators.depthwise_conv2d import DepthwiseConv2d
from ..operators.head import ClassifierHead
from ..operators.identity import Identity
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.pooling import Pooling
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

SMALL, MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
# widths, layers per stage
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((24, 32, 64), (1, 1, 2)),
    "s12": (SMALL, (2, 2, 6, 2)), "s24": (SMALL, (4, 4, 12, 4)), "s36": (SMALL, (6, 6, 18, 6)),
    "m36": (MEDIUM, (6, 6, 18, 6)), "m48": (MEDIUM, (8, 8, 24, 8))}


def block(mixer: Any, ratio: Any = 4) -> Block:
    """One layer."""
    return Block(mixer=mixer, channel=MLP(ratio=ratio), norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer the token mixer (none, pooling, convolution, attention) and
    the MLP's size."""
    mixer = choice(Identity(), Pooling(), DepthwiseConv2d(kernel=choice(3, 7)),
                   Attention(heads=2, bidirectional=True, rotary=False))
    layers = [(repeat(block(mixer, choice(2, 4)), times=integer(1, 3)),) for _ in range(3)]
    images = Images(image, channels, classes, patch)
    return Space(embed=images.grid(), width=choice(16, 24),
                 body=stages((None, choice(32, 48), choice(64, 96)), layers, kernel=3),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """PoolFormer "s12" (12M), "s24" (21M), "s36" (31M), "m36" (56M) or "m48" (73M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    body = stages(widths, [(repeat(block(Pooling()), times=depth),) for depth in depths], kernel=3)
    return only(embed=images.grid(), width=widths[0], body=body, head=ClassifierHead(images.classes), norm=LayerNorm())
