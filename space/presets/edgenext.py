"""EdgeNeXt: a pyramid of depthwise convolutions whose stages end with attention of channels.

EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications (Maaz et al., 2022). Filters
grow from stage to stage. Without biases of matrices and filters: up to 2 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operator import Source
from ..operators.convnext import ConvNeXtUnit
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.split_depthwise import SDTA
from ..plan import Block
from ..space import Space
from .pyramids import SMALL_IMAGES, Images, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications", 2022,
                systems=("S102",))

KERNELS, SPLITS = (3, 5, 7, 9), (2, 2, 3, 4)
# widths, layers per stage, heads, where the layer scale starts
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, float | None]] = {
    "tiny": ((16, 24, 32), (1, 2, 2), 2, None),
    "xxs": ((24, 48, 88, 168), (2, 2, 6, 2), 4, 1e-6), "xs": ((32, 64, 100, 192), (3, 3, 9, 3), 4, 1e-6),
    "s": ((48, 96, 160, 304), (3, 3, 9, 3), 8, 1e-6), "b": ((80, 160, 288, 584), (3, 3, 9, 3), 8, 1e-6)}


def convolution(kernel: Any, ratio: Any = 4, layer_scale: float | None = None) -> Block:
    """A layer of the convolution encoder."""
    return Block(mixer=ConvNeXtUnit(kernel, ratio, layer_scale), norm=NoNorm())


def attention(heads: Any, splits: Any, ratio: Any = 4, position: bool = False, layer_scale: float | None = None) -> Block:
    """The layer that ends a stage."""
    return Block(mixer=SDTA(heads, splits, ratio, position, layer_scale), norm=NoNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer the filter, the splits and the size of what follows them."""
    layers = [(repeat(convolution(choice(*kernels), choice(2, 4)), times=integer(1, 3)),
               repeat(attention(choice(2, 4), choice(2, 3, 4), choice(2, 4)), times=integer(0, 1)))
              for kernels in ((3, 5), (3, 5, 7), (5, 7, 9))]
    return Space(embed=Images(image, channels, classes, patch).overlapping(patch), width=choice(16, 24),
                 body=stages((None, choice(24, 32), choice(32, 48)), layers, norm=LayerNorm()),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """EdgeNeXt-"xxs" (1.3M), "xs" (2.3M), "s" (5.6M) or "b" (18.5M), for 256 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths, heads, scale = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else Images(image=256, channels=3, classes=1000, patch=4)
    layers = []
    for stage, depth in enumerate(depths):
        ends = 1 if stage else 0
        layers.append((repeat(convolution(KERNELS[stage], layer_scale=scale), times=depth - ends),
                       *[attention(heads, SPLITS[stage], position=stage == 1, layer_scale=scale)] * ends))
    return only(embed=images.overlapping(images.patch), width=widths[0], body=stages(widths, layers, norm=LayerNorm()),
                head=ClassifierHead(images.classes), norm=LayerNorm())
