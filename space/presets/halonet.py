"""HaloNet: residual bottlenecks around attention of blocks with a halo, whose queries thin out from stage to stage.

Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., 2021). The stem is one convolution of
7 x 7 at stride 4 with a layer norm (at stride 2, then max pooling), and no activation follows the residual sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.halo_downsample import HaloDownsample
from ..operator import Source
from ..operators.halo_bottleneck import HaloBottleneck
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm, NoNorm
from ..plan import Block
from ..space import Space
from .pyramids import SMALL_IMAGES, Images, joined
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Scaling Local Self-Attention for Parameter Efficient Visual Backbones", 2021, systems=("S390",))


class Size(NamedTuple):
    """block and halo, r_v (values over keys), r_b (width over inner width), layers of the third stage, side in pixels."""

    block: int
    halo: int
    values: float
    widen: float
    layers: int
    image: int


HEADS = (4, 8, 8, 8)
SIZES: dict[str, Size] = {
    "tiny": Size(4, 1, 1.0, 1.0, 2, 28), "h0": Size(8, 3, 1.0, 0.5, 7, 256), "h1": Size(8, 3, 1.0, 1.0, 10, 256),
    "h2": Size(8, 3, 1.25, 1.0, 11, 256)}


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths and depths, and per layer block, halo and the size of values."""
    def options() -> dict[str, Any]:
        return {"block": choice(4, 6), "halo": choice(0, 1, 2), "values": choice(1.0, 2.0), "head_dim": choice(8, 16)}

    images = Images(image, channels, classes, patch)
    layers = [(repeat(Block(mixer=HaloBottleneck(heads=2, **options()), norm=NoNorm()), times=integer(1, 3)),)
              for _ in range(3)]
    between = [HaloDownsample(width=width, heads=2, **options()) for width in (choice(32, 64), choice(64, 96))]
    return Space(embed=images.overlapping(2 * patch - 1), width=choice(16, 32), body=joined(layers, between),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """HaloNet-"h0" (5.5M), "h1" (8.1M) or "h2" (9.4M), for 256 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    sizes = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else Images(sizes.image, 3, 1000, 4)
    first, depths = (16, (1, 1, 2)) if size == "tiny" else (64, (3, 3, sizes.layers, 3))
    body: list[Any] = []
    for stage, depth in enumerate(depths):
        inner = first * 2**stage
        options = {"heads": HEADS[stage], "head_dim": inner // HEADS[stage], "values": sizes.values, "block": sizes.block,
                   "halo": sizes.halo}
        body.append(HaloDownsample(width=round(inner * sizes.widen), stride=2 if stage else 1, **options))
        body.append(repeat(Block(mixer=HaloBottleneck(**options), norm=NoNorm()), times=depth - 1))
    return only(embed=images.overlapping(2 * images.patch - 1), width=first, body=tuple(body),
                head=ClassifierHead(images.classes), norm=LayerNorm())
