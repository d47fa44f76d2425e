"""ConvNeXt: a pyramid of depthwise convolutions and MLPs with one norm per layer.

A ConvNet for the 2020s (Liu et al., 2022). Without biases of matrices and filters and without the norm after the stem:
under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operators.convnext import ConvNeXtUnit
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm, NoNorm
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, Images, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

# width of the first stage (it doubles), layers per stage, where the layer scale starts
SIZES: dict[str, tuple[int, tuple[int, ...], float | None]] = {
    "tiny": (24, (1, 1, 2), None),
    "t": (96, (3, 3, 9, 3), 1e-6), "s": (96, (3, 3, 27, 3), 1e-6), "b": (128, (3, 3, 27, 3), 1e-6),
    "l": (192, (3, 3, 27, 3), 1e-6), "xl": (256, (3, 3, 27, 3), 1e-6)}


def block(kernel: Any = 7, ratio: Any = 4, layer_scale: float | None = None) -> Block:
    """One layer."""
    return Block(mixer=ConvNeXtUnit(kernel, ratio, layer_scale), norm=NoNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer the filter's and the MLP's size."""
    images = Images(image, channels, classes, patch)
    layers = [(repeat(block(choice(3, 5, 7), choice(2, 3, 4)), times=integer(1, 3)),) for _ in range(3)]
    return Space(embed=images.grid(), width=choice(16, 24),
                 body=stages((None, choice(32, 48), choice(64, 96)), layers, norm=LayerNorm()),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """ConvNeXt-"t" (29M), "s" (50M), "b" (89M), "l" (198M) or "xl" (350M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    first, depths, scale = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    widths = [first * 2**i for i in range(len(depths))]
    body = stages(widths, [(repeat(block(layer_scale=scale), times=depth),) for depth in depths], norm=LayerNorm())
    return only(embed=images.grid(), width=first, body=body, head=ClassifierHead(images.classes), norm=LayerNorm())
