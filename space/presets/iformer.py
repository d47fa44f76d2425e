"""iFormer: a pyramid of Inception mixers, with more and more of the channels in attention.

Inception Transformer (Si et al., 2022). Without learned positions (3 % of the parameters of "s"), biases of matrices and
layer scale; norms of the transitions are over channels (over the batch in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.merging import ConvEmbedding
from ..operator import Source
from ..operators.conv_stem import ConvStem
from ..operators.head import ClassifierHead
from ..operators.inception_mixer import InceptionMixer
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .pyramids import joined
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Inception Transformer", 2022, systems=("S040",))

# widths, then per stage the heads that attend in every layer; heads are of size 32 (8 in "tiny")
SIZES: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "tiny": ((16, 32), ((1,), (2, 3))),
    "s": ((96, 192, 320, 384), ((1,) * 3, (3,) * 3, (7,) * 4 + (9,) * 5, (11,) * 3)),
    "b": ((96, 192, 384, 512), ((1,) * 4, (3,) * 6, (8,) * 7 + (10,) * 7, (15,) * 6)),
    "l": ((96, 192, 448, 640), ((1,) * 4, (3,) * 6, (10,) * 9 + (12,) * 9, (19,) * 8))}


def block(heads: Any, pool: Any, ratio: Any = 4, head_dim: Any = 32) -> Block:
    """One layer."""
    return Block(mixer=InceptionMixer(heads=heads, pool=pool, head_dim=head_dim), channel=MLP(ratio=ratio), norm=LayerNorm())


def ramp(heads: Sequence[int], pool: int, head_dim: int = 32) -> tuple[Block, ...]:
    """The layers of a stage by the heads that attend in them."""
    return tuple(block(each, pool, head_dim=head_dim) for each in heads)


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Two stages: their widths and depths, and per layer the heads that attend, the squares they see, and the MLP's size."""
    layers = [(repeat(block(choice(*heads), choice(1, 2), choice(2, 4), head_dim=8), times=integer(1, 3)),)
              for heads in ((1,), (1, 2, 3))]
    return Space(embed=ConvStem(patch, channels, image), width=choice(16, 32),
                 body=joined(layers, [ConvEmbedding(width=choice(32, 48))]), head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """iFormer-"s" (20M), "b" (48M) or "l" (87M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, heads = at_size(SIZES, size)
    is_tiny = size == "tiny"
    layers = [ramp(each, pool=2 if stage < len(heads) // 2 else 1, head_dim=8 if is_tiny else 32)
              for stage, each in enumerate(heads)]
    stem = ConvStem(patch=2, channels=1, image=28) if is_tiny else ConvStem()
    return only(embed=stem, width=widths[0], body=joined(layers, [ConvEmbedding(width=width) for width in widths[1:]]),
                head=ClassifierHead(10 if is_tiny else 1000), norm=LayerNorm())
