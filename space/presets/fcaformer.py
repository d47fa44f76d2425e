"""FcaFormer: convolutions first, then stages of attention that reads a few merged tokens of all layers before as well.

Fcaformer: Forward Cross Attention in Hybrid Vision Transformer (Zhang et al., 2023). Without biases of matrices and filters
and with one layer norm in front of an MLP where the authors' code has two in a row; the norm in front of the scores stands
before the mean over tokens.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.inverted_merging import InvertedMerging
from ..macros.residual import LayerMemory
from ..macros.stack import Stack
from ..operator import Source
from ..operators.add import Add
from ..operators.conv_stem import ConvStem
from ..operators.fca import FcaAttention, TokenEnhancement
from ..operators.head import ClassifierHead
from ..operators.layer_scale import LayerScale
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .convnext import block as convolution
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Fcaformer: Forward Cross Attention in Hybrid Vision Transformer", 2023, systems=("S332",))

# widths, layers per stage, size of a head; the last two stages attend
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "tiny": ((16, 24, 32), (1, 2, 2), 8),
    "l1": ((64, 128, 192, 320), (2, 2, 6, 2), 32),
    "l2": ((96, 192, 320, 480), (2, 2, 7, 2), 32),
    "l3": ((96, 192, 320, 512), (3, 6, 12, 3), 32),
    "l4": ((128, 256, 512, 768), (3, 6, 12, 3), 32)}


def layer(heads: Any, side: int, tells: bool, ratio: Any = 4, scale: float = 1e-6) -> tuple[Block, ...]:
    """One block: attention, merge and enhancement in the place of the stream, MLP."""
    scaled = LayerScale(init=scale)
    return (Block(mixer=FcaAttention(heads, side), norm=LayerNorm(), join=scaled),
            Block(mixer=TokenEnhancement(tells=tells), norm=NoNorm(), join=Add(skip=0.0)),
            Block(channel=MLP(ratio=ratio), norm=LayerNorm(), join=scaled))


def attending(times: int, heads: Any, side: int, ratio: Any = 4, scale: float = 1e-6) -> Stack:
    """A stage of so many blocks."""
    blocks = [part for number in range(times) for part in layer(heads, side, number + 1 < times, ratio, scale)]
    return Stack(tuple(blocks), LayerMemory())


def transition(width: Any) -> InvertedMerging:
    """Between two stages."""
    return InvertedMerging(width=width, expand=1, of="out", squeeze=None, activation="gelu")


def space(image: int = 28, channels: int = 1, classes: int = 10) -> Space:
    """A stage of convolutions and one of attention: their widths and depths, and per stage heads and the size of the MLP."""
    first = repeat(convolution(choice(3, 5, 7), choice(2, 4)), times=integer(1, 2))
    second = choice(*[attending(times, choice(2, 4), image // 4, choice(2, 4), 0.1) for times in (1, 2, 3)])
    return Space(embed=ConvStem(2, channels, image), width=choice(16, 24), head=ClassifierHead(classes), norm=LayerNorm(),
                 body=(first, transition(choice(24, 32)), second))


def fixed(size: str = "tiny") -> Architecture:
    """FcaFormer-"l1" (6.2M), "l2" (16.3M), "l3" (27.9M) or "l4" (65.6M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths, head_dim = at_size(SIZES, size)
    side = 14 if size == "tiny" else 56
    body: list[Any] = []
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        body += [transition(width)] if number else []
        grid = -(-side // 2**number)
        body.append(attending(depth, width // head_dim, grid, scale=0.1 if size == "tiny" else 1e-6)
                    if number + 2 >= len(widths) else
                    repeat(convolution(layer_scale=None if size == "tiny" else 1e-6), times=depth))
    stem = ConvStem(2, 1, 28) if size == "tiny" else ConvStem(4, 3, 224)
    return only(embed=stem, width=widths[0], body=tuple(body), head=ClassifierHead(10 if size == "tiny" else 1000),
                norm=LayerNorm())
