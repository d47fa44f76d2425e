"""CCT: small images by a convolutional tokeniser, a small encoder, and a softmax over tokens instead of a class token.

Escaping the Big Data Paradigm with Compact Transformers (Hassani et al., 2021). A layer is pre-norm; the authors' code adds
the feed-forward layer to its normed input instead. Matrices have no biases: up to 2 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..operator import Source
from ..operators.conv_tokenizer import ConvTokenizer
from ..operators.layernorm import LayerNorm
from ..operators.pooled_head import PooledHead
from ..space import Space
from .sizes import at_size, only
from .vit import block

__all__ = ["SIZES", "fixed", "space"]

source = Source("Escaping the Big Data Paradigm with Compact Transformers", 2021, systems=("S416",))

# width, layers, heads, hidden size over width; kernel, stride and layers of the tokeniser; side, channels and classes
SIZES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "tiny": ((64, 2, 2, 2), (3, 1, 2), (28, 1, 10)),
    "2/3x2": ((128, 2, 2, 1), (3, 1, 2), (32, 3, 10)), "4/3x2": ((128, 4, 2, 1), (3, 1, 2), (32, 3, 10)),
    "6/3x1": ((256, 6, 4, 2), (3, 1, 1), (32, 3, 10)), "7/3x1": ((256, 7, 4, 2), (3, 1, 1), (32, 3, 10)),
    "7/3x2": ((256, 7, 4, 2), (3, 1, 2), (32, 3, 10)), "14/7x2": ((384, 14, 6, 3), (7, 2, 2), (224, 3, 1000))}


def space(image: int = 28, channels: int = 1, classes: int = 10) -> Space:
    """Depth and kernel of the tokeniser, positions, width, depth and heads, and the MLP's size per layer."""
    embed: Any = ConvTokenizer(channels, image, layers=choice(1, 2), kernel=choice(3, 5), stride=choice(1, 2),
                               position=choice("learned", "sine", None))
    return Space(embed=embed, width=choice(32, 64), body=repeat(block(tied(choice(2, 4)), choice(1, 2)), times=integer(2, 4)),
                 head=PooledHead(classes, pool=choice("attention", "mean")), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """CCT-"2/3x2" (0.28M), "4/3x2" (0.48M), "6/3x1" (3.2M), "7/3x1" (3.8M) or "7/3x2" (3.9M) for CIFAR-10, "14/7x2" (22M) for
    224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    (width, layers, heads, ratio), (kernel, stride, convolutions), (side, channels, classes) = at_size(SIZES, size)
    embed = ConvTokenizer(channels, side, convolutions, kernel, stride)
    return only(embed=embed, width=width, body=repeat(block(heads, ratio), times=layers),
                head=PooledHead(classes, pool="attention"), norm=LayerNorm())
