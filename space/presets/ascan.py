"""AsCAN: convolution blocks early, transformer blocks late, in a layout that shifts from stage to stage.

AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation (Kag et al., 2024). A stage is a
word of C (fused mobile convolution with squeeze and excitation) and T (attention over all tokens and an MLP), each with at
least as many T as the one before. Widths and depths are chosen here; the paper's sizes are not reproduced, nor
its U-shaped network that generates images.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operator import Source
from ..operators.attention import Attention
from ..operators.conv_stem import ConvStem
from ..operators.fused_mobile_conv import FusedMobileConv
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .pyramids import stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation", 2024,
                options=("S315",))

# widths, the blocks of every stage, size of a head
SIZES: dict[str, tuple[tuple[int, ...], tuple[str, ...], int]] = {
    "tiny": ((16, 24, 32), ("C", "CT", "TT"), 8),
    "t": ((64, 128, 256, 512), ("CC", "CCCT", "CCTTTT", "TTTT"), 32),
    "b": ((96, 192, 384, 768), ("CC", "CCCT", "CCTTTT", "TTTT"), 32)}


def convolution(kernel: Any = 3, expand: Any = 4) -> Block:
    """A block C."""
    return Block(mixer=FusedMobileConv(kernel=kernel, expand=expand), norm=NoNorm())


def transformer(heads: Any, ratio: Any = 4) -> Block:
    """A block T."""
    return Block(mixer=Attention(heads=heads, bidirectional=True, rotary=False), channel=MLP(ratio=ratio), norm=LayerNorm())


def spelled(layout: str, heads: int) -> tuple[Block, ...]:
    """The blocks of a stage."""
    return tuple(convolution() if letter == "C" else transformer(heads) for letter in layout)


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths, how many blocks of each kind, and per block its size."""
    numbers = (((1, 3), (0, 0)), ((1, 2), (0, 1)), ((0, 1), (1, 3)))
    layers = [(repeat(convolution(choice(1, 3), choice(2, 4)), times=integer(*c)),
               *([repeat(transformer(2, choice(2, 4)), times=integer(*t))] if t[1] else [])) for c, t in numbers]
    return Space(embed=ConvStem(patch, channels, image), width=choice(16, 24),
                 body=stages((None, choice(24, 32), choice(32, 48)), layers, kernel=3), head=ClassifierHead(classes),
                 norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """Four stages of "t" or, half as wide again, "b", for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, layouts, head_dim = at_size(SIZES, size)
    layers = [spelled(layout, width // head_dim) for layout, width in zip(layouts, widths, strict=True)]
    stem = ConvStem(patch=2, channels=1, image=28) if size == "tiny" else ConvStem()
    return only(embed=stem, width=widths[0], body=stages(widths, layers, kernel=3),
                head=ClassifierHead(10 if size == "tiny" else 1000), norm=LayerNorm())
