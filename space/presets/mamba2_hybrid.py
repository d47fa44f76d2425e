"""Mamba-2-Hybrid: 43 % Mamba-2, 7 % attention and 50 % MLP layers.

An Empirical Study of Mamba-based Language Models (Waleffe et al., 2024). Counted as there, a layer is a norm and one
mixer or one MLP; here each mixer and the MLP after it are one `Block`. Attention layers are spread evenly, the first
mixer is a Mamba-2 and the last layer an MLP; attention needs no positions, since the state spaces carry them. The order
in the paper strays from strict alternation in a few places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..choices import choice, repeat
from ..constraints import count
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.mamba2 import Mamba2
from ..operators.mlp import MLP
from ..operators.rmsnorm import RMSNorm
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "places_of_attention", "space"]

source = Source("An Empirical Study of Mamba-based Language Models", 2024, options=("S279",))


@dataclass(frozen=True)
class Size:
    """blocks: of a mixer and an MLP. attention: how many mixers are attention."""

    vocab: int
    width: int
    blocks: int
    attention: int
    mamba: Mamba2
    heads: int
    kv_heads: int


SIZES = {
    "tiny": Size(256, 64, 7, 1, Mamba2(state=16, head_dim=16), 2, 1),
    "8b": Size(256000, 4096, 28, 4, Mamba2(state=128, head_dim=64, groups=8), 32, 8),
}


def places_of_attention(blocks: int, attention: int) -> set[int]:
    """Which of the mixers are attention: spread evenly, none first.

    Example:
        >>> sorted(places_of_attention(28, 4))
        [5, 11, 16, 22]
    """
    return {(i + 1) * blocks // (attention + 1) for i in range(attention)}


def block(mixer: Any, ratio: Any = 4) -> Block:
    """A mixer and the MLP after it."""
    return Block(mixer=mixer, channel=MLP(ratio=ratio, activation="squared_relu"), norm=RMSNorm(1e-5))


def space(vocab: int = 256) -> Space:
    """Width, the mixer and the MLP's size per block, at most two of seven mixers being attention."""
    mixer = choice(Mamba2(state=choice(16, 32), head_dim=16),
                   Attention(heads=4, kv_heads=choice(1, 2), rotary=False))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128),
                 body=repeat(block(mixer, choice(2, 4)), times=choice(4, 7)), head=LanguageHead(tied=True),
                 constraints=(count("Attention") <= 2,))


def fixed(size: str = "tiny") -> Architecture:
    """The "8b" of the paper: 24 Mamba-2, 4 attention and 28 MLP layers; "tiny": 6, 1 and 7 with bytes as tokens."""
    it = at_size(SIZES, size)
    attention = Attention(heads=it.heads, kv_heads=it.kv_heads, rotary=False)
    places = places_of_attention(it.blocks, it.attention)
    body = tuple(block(attention if i in places else it.mamba) for i in range(it.blocks))
    return only(embed=TokenEmbedding(it.vocab), width=it.width, body=body, head=LanguageHead(tied=size == "tiny"),
                norm=RMSNorm(1e-5))
