"""MASFormer: full attention in a few layers, a sliding window in all others.

Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer (Zhang et al., 2023). Which
layers see everything is decided here, under a bound on how many do; the fixed members have it in the first ones. Windows
slide, where the paper also cuts blocks. Training goes on from a model with full attention, which has the same weights.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..constraints import count
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer", 2023,
                systems=("S281",))

# vocabulary, width, layers, heads, window, layers with full attention
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (256, 64, 4, 2, 32, 1),
    "large": (50257, 2048, 24, 16, 1024, 8),
}


def block(heads: Any, window: Any) -> Block:
    """One layer."""
    return Block(mixer=Attention(heads=heads, window=window), channel=MLP(ratio=4), norm=LayerNorm())


def space(vocab: int = 256, window: int = 64, full: int = 2) -> Space:
    """Width, heads, depth, and in which layers, at most `full` of them, attention is not cut to `window` tokens."""
    layer = block(tied(choice(2, 4)), choice(window, None))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(layer, times=integer(2, 8)),
                 head=LanguageHead(tied=True), norm=LayerNorm(), constraints=[count(Attention, window=None) <= full])


def fixed(size: str = "tiny") -> Architecture:
    """ "large" (1.3B) sees everything in 8 of 24 layers; "tiny" has bytes as tokens and one such layer of 4."""
    vocab, width, layers, heads, window, full = at_size(SIZES, size)
    body = tuple(block(heads, None if layer < full else window) for layer in range(layers))
    return only(embed=TokenEmbedding(vocab), width=width, body=body, head=LanguageHead(tied=True), norm=LayerNorm())
