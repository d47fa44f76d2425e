"""GPT-2: pre-norm decoders with a GELU MLP.

Language Models are Unsupervised Multitask Learners (Radford et al., 2019). Positions are rotary instead of a learned
table of 1,024 rows, and matrices have no biases: together 0.2 to 0.7 % fewer parameters than published.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

# vocabulary, width, layers, heads
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (256, 64, 3, 2),
    "small": (50257, 768, 12, 12),
    "medium": (50257, 1024, 24, 16),
    "large": (50257, 1280, 36, 20),
    "xl": (50257, 1600, 48, 25),
}


def block(heads: Any, ratio: Any = 4, activation: Any = "gelu") -> Block:
    """One layer."""
    return Block(mixer=Attention(heads=heads), channel=MLP(ratio=ratio, activation=activation), norm=LayerNorm())


def space(vocab: int = 256) -> Space:
    """Width and number of heads of the whole network, depth, and per layer the MLP's size and activation."""
    heads = tied(choice(2, 4))
    layer = block(heads, choice(2, 3, 4), choice("gelu", "squared_relu"))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(layer, times=integer(2, 6)),
                 head=LanguageHead(tied=True), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """GPT-2 "small" (124M), "medium" (355M), "large" (774M) or "xl" (1.6B); "tiny" has bytes as tokens."""
    vocab, width, layers, heads = at_size(SIZES, size)
    return only(embed=TokenEmbedding(vocab), width=width, body=repeat(block(heads), times=layers),
                head=LanguageHead(tied=True), norm=LayerNorm())
