"""BASED: global linear attention with Taylor features, exact attention in a small window, and gated short convolutions.

Simple linear attention language models balance the recall-throughput tradeoff (Arora et al., 2024). Each layer is one of
three mixers and a SwiGLU. The paper's convolutions are gated by a SiLU of a second projection; here the gates of
`ShortConv` are linear. Its layers are of equal width but not one fixed order; here linear layers and windows are spread
evenly among convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..choices import choice, repeat
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.linear_attention import Based
from ..operators.short_conv import ShortConv
from ..operators.swiglu import SwiGLU
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Simple linear attention language models balance the recall-throughput tradeoff", 2024, options=("S322",))


@dataclass(frozen=True)
class Size:
    """mixers: the order of the layers, by letter: l linear attention, w window, c convolution."""

    vocab: int
    width: int
    mixers: str
    heads: int
    key_dim: int
    window: int


SIZES = {"tiny": Size(256, 64, "clcwc", 4, 8, 16)}


def block(mixer: Any) -> Block:
    """A mixer and the SwiGLU after it."""
    return Block(mixer=mixer, channel=SwiGLU(2))


def space(vocab: int = 256) -> Space:
    """Width, and per layer one of the three mixers, with the sizes that trade the state's size for recall."""
    mixer = choice(Based(heads=4, key_dim=choice(4, 8, 16)), Attention(heads=4, window=choice(16, 64)), ShortConv(kernel=3))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(block(mixer), times=choice(4, 6)),
                 head=LanguageHead(tied=True))


def fixed(size: str = "tiny") -> Architecture:
    """Five layers with bytes as tokens."""
    it = at_size(SIZES, size)
    mixers = {"l": Based(heads=it.heads, key_dim=it.key_dim), "w": Attention(heads=it.heads, window=it.window),
              "c": ShortConv(kernel=3)}
    return only(embed=TokenEmbedding(it.vocab), width=it.width, body=tuple(block(mixers[letter]) for letter in it.mixers),
                head=LanguageHead(tied=True))
