"""Vision transformers.

An Image is Worth 16x16 Words (Dosovitskiy et al., 2020), at the sizes of Training data-efficient image transformers
(Touvron et al., 2021). Class scores come from the mean of all tokens instead of a class token, and matrices have no
biases: together under 1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..operators.attention import Attention
from ..operators.embedding import PatchEmbedding
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES
from .sizes import at_size, only

__all__ = ["SIZES", "block", "fixed", "space"]

# width, layers, heads, patch
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 3, 2, 4), "ti": (192, 12, 3, 16), "s": (384, 12, 6, 16), "b": (768, 12, 12, 16),
    "l": (1024, 24, 16, 16)}


def block(heads: Any, ratio: Any = 4, head_dim: Any = None) -> Block:
    """One layer of an encoder: attention both ways, positions from the embedding alone."""
    return Block(mixer=Attention(heads=heads, head_dim=head_dim, bidirectional=True, rotary=False),
                 channel=MLP(ratio=ratio), norm=LayerNorm())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4) -> Space:
    """Width and heads of the whole network, depth, and the MLP's size per layer."""
    return Space(embed=PatchEmbedding(patch, channels, image), width=choice(64, 96, 128),
                 body=repeat(block(tied(choice(2, 4)), choice(2, 3, 4)), times=integer(2, 6)),
                 head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """ViT "ti" (5.7M), "s" (22M), "b" (86M) or "l" (304M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    width, layers, heads, patch = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    return only(embed=PatchEmbedding(patch, images.channels, images.image), width=width,
                body=repeat(block(heads), times=layers), head=ClassifierHead(images.classes), norm=LayerNorm())
