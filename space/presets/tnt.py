"""TNT: a vision transformer in whose patches another one is at work.

Transformer in Transformer (Han et al., 2021). Class scores come from a class token. Matrices have no biases: under
1 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.nested import TransformerInTransformer
from ..operators.embedding import PatchEmbedding
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.pooled_head import PooledHead
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES
from .sizes import at_size, only
from .vit import block

__all__ = ["SIZES", "fixed", "space"]

# widths of words and of sentences, layers, heads of both
SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (8, 32, 2, 2, 2), "s": (24, 384, 12, 4, 6), "b": (40, 640, 12, 4, 10)}


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Widths of words and sentences, how many layers there are of both, and per layer heads and the MLP's size. Sentences of
    as many words as leave 7 rows."""
    side = image // patch // 7
    nested = TransformerInTransformer(
        inner=repeat(block(choice(1, 2), choice(1, 2)), times=integer(1, 2)),
        outer=repeat(block(choice(2, 4), choice(2, 4)), times=integer(2, 4)), width=choice(32, 64), side=side, places=(7, 7))
    embed: Any = PatchEmbedding(patch, channels, image, kernel=2 * patch - 1, grid=True, position=False)
    return Space(embed=embed, width=choice(8, 12), body=nested, head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """TNT-"s" (23.8M) or "b" (65.6M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    word, width, layers, word_heads, heads = at_size(SIZES, size)
    images, patch, side, rows = (SMALL_IMAGES, 2, 2, 7) if size == "tiny" else (IMAGENET, 4, 4, 14)
    nested = TransformerInTransformer(inner=repeat(block(word_heads), times=layers), outer=repeat(block(heads), times=layers),
                                      width=width, side=side, places=(rows, rows), class_token=True)
    embed = PatchEmbedding(patch, images.channels, images.image, kernel=2 * patch - 1, grid=True, position=False)
    return only(embed=embed, width=word, body=nested, head=PooledHead(images.classes, pool="class"), norm=LayerNorm())
