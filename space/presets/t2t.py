"""T2T-ViT: a deep and narrow vision transformer behind tokens that are gathered from tokens.

Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet (Yuan et al., 2021). Class scores come from a class
token, positions are sines. Matrices have no biases: under 1 % fewer parameters than published. Sizes with a "t" have a
transformer layer between splits, the others a performer.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..operator import Source
from ..operators.layernorm import LayerNorm
from ..operators.pooled_head import PooledHead
from ..operators.tokens_to_token import TokensToToken
from ..space import Space
from .sizes import at_size, only
from .vit import block

__all__ = ["SIZES", "fixed", "space"]

source = Source("Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", 2021, systems=("S411",))

# width, layers, heads, hidden size over width, mixer
SIZES: dict[str, tuple[int, int, int, int, str]] = {
    "tiny": (32, 4, 2, 2, "performer"),
    "7": (256, 7, 4, 2, "performer"), "10": (256, 10, 4, 2, "performer"), "12": (256, 12, 4, 2, "performer"),
    "14": (384, 14, 6, 3, "performer"), "19": (448, 19, 7, 3, "performer"), "24": (512, 24, 8, 3, "performer"),
    "t-14": (384, 14, 6, 3, "transformer"), "t-19": (448, 19, 7, 3, "transformer"), "t-24": (512, 24, 8, 3, "transformer")}


def space(image: int = 28, channels: int = 1, classes: int = 10) -> Space:
    """Splits, tokens and mixer between them; width, depth and heads, and the MLP's size per layer."""
    embed: Any = choice(*(TokensToToken(channels, image, kernels, strides, choice(8, 16), choice("performer", "transformer"),
                                        class_token=True)
                          for kernels, strides in (((3, 3), (2, 2)), ((5, 3), (2, 2)), ((3, 3, 3), (2, 2, 2)))))
    return Space(embed=embed, width=choice(32, 64), body=repeat(block(tied(choice(2, 4)), choice(2, 3)), times=integer(2, 5)),
                 head=PooledHead(classes, pool="class"), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """T2T-ViT-"7" (4.3M), "10" (5.9M), "12" (6.9M), "14" and "t-14" (21.5M), "19" and "t-19" (39M), "24" and "t-24" (64M),
    for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    width, layers, heads, ratio, mixer = at_size(SIZES, size)
    embed, classes = TokensToToken(mixer=mixer, class_token=True), 1000
    if size == "tiny":
        embed, classes = TokensToToken(1, 28, (3, 3), (2, 2), token_dim=8, class_token=True), 10
    return only(embed=embed, width=width, body=repeat(block(heads, ratio), times=layers),
                head=PooledHead(classes, pool="class"), norm=LayerNorm())
