"""Next-ViT: convolution blocks, and at the end of every round of them one transformer block that widens the stream.

Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios (Li et al., 2022). The
stem is two convolutions of four, a tenth of the multiply-adds of "s". Without biases of matrices: under 1 % fewer
parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.next_transformer import NextTransformer
from ..macros.pooled_merging import PooledMerging
from ..macros.stack import Stack
from ..operator import Source
from ..operators.batchnorm import BatchNorm
from ..operators.conv_stem import ConvStem
from ..operators.head import ClassifierHead
from ..operators.layernorm import NoNorm
from ..operators.mlp import MLP
from ..operators.multi_head_conv import MultiHeadConv
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios",
                2022, systems=("S264",))

# rounds of four convolution blocks and a transformer block in the third stage
SIZES: dict[str, int] = {"tiny": 1, "s": 2, "b": 4, "l": 6}


def convolution(ratio: Any = 3, head_dim: Any = 32, kernel: Any = 3) -> Stack:
    """The convolution block."""
    return Stack((Block(mixer=MultiHeadConv(head_dim, kernel), norm=NoNorm()),
                  Block(channel=MLP(ratio=ratio, activation="relu"), norm=BatchNorm())))


def hybrid(width: int, wider: int, stride: int, blocks: int, reduction: int, head_dim: int = 32) -> tuple[Any, ...]:
    """One round of the hybrid strategy: a patch embedding, convolution blocks, a transformer block."""
    return (PooledMerging(width=width, stride=stride), repeat(convolution(head_dim=head_dim), times=blocks),
            NextTransformer(width=wider, reduction=reduction, head_dim=head_dim))


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Two stages: convolution blocks and their MLPs' size, and per transformer block its share, reduction and MLP."""
    layer = convolution(choice(2, 3), 8, choice(3, 5))
    body = (repeat(layer, times=integer(1, 2)), PooledMerging(width=choice(24, 32), activation=None),
            repeat(layer, times=integer(1, 2)),
            NextTransformer(width=choice(40, 48), reduction=choice(1, 2), head_dim=8, ratio=choice(2, 3)))
    return Space(embed=ConvStem(patch, channels, image, activation="relu", last=True), width=choice(16, 24), body=body,
                 head=ClassifierHead(classes), norm=BatchNorm())


def fixed(size: str = "tiny") -> Architecture:
    """Next-ViT-"s" (32M), "b" (45M) or "l" (58M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    rounds = at_size(SIZES, size)
    if size == "tiny":
        body: tuple[Any, ...] = (repeat(convolution(head_dim=8), times=1), *hybrid(24, 32, 2, 1, 2, head_dim=8))
        return only(embed=ConvStem(2, 1, 28, activation="relu", last=True), width=16, body=body,
                    head=ClassifierHead(10), norm=BatchNorm())
    third = [item for number in range(rounds) for item in hybrid(384, 512, 1 if number else 2, 4, 2)]
    body = (PooledMerging(width=96, stride=1), repeat(convolution(), times=3), *hybrid(192, 256, 2, 3, 4), *third,
            *hybrid(768, 1024, 2, 2, 1))
    return only(embed=ConvStem(activation="relu", last=True), width=64, body=body, head=ClassifierHead(1000),
                norm=BatchNorm())
