"""Blocks of layers in any order and number, repeated.

Brainformers: Trading Simplicity for Efficiency (Zhou et al., 2023): a block is a searched sequence of attention, dense
and sparsely gated feed-forward layers, and the network repeats it. Here too one block is decided and repeated with its
own weights each time; routing is by token choice, and the norm is fixed. The fixed members are blocks in the manner of
the paper (more feed-forward layers than attention, sparse ones among them), not published ones.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..macros.stack import Stack
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.mlp import MLP
from ..operators.moe import MoE
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Brainformers: Trading Simplicity for Efficiency", 2023, options=("S234",))

# width, heads, repetitions, the block's layers: a attention, f dense feed-forward, g sparsely gated feed-forward
SIZES: dict[str, tuple[int, int, int, str]] = {
    "tiny": (64, 2, 2, "agfgfa"),
    "small": (512, 8, 3, "agfgfagf"),
}


def layer(letter: str, heads: int) -> Block:
    """One layer of a block."""
    made: dict[str, Any] = {"a": {"mixer": Attention(heads=heads)}, "f": {"channel": MLP(ratio=4)},
                            "g": {"channel": MoE(experts=8, top_k=2, ratio=2)}}
    return Block(**made[letter])


def space(vocab: int = 256) -> Space:
    """Width; one block of four to eight layers, each attention, dense or sparse of some size; its repetitions."""
    layers = choice(Block(mixer=Attention(heads=choice(2, 4))),
                    Block(channel=MLP(ratio=choice(2, 4), activation=choice("gelu", "squared_relu"))),
                    Block(channel=MoE(experts=choice(4, 8), top_k=choice(1, 2), ratio=choice(1, 2))))
    unit = tied(Stack(repeat(layers, times=integer(4, 8))))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(unit, times=integer(1, 2)),
                 head=LanguageHead(tied=True))


def fixed(size: str = "tiny") -> Architecture:
    """A "tiny" or a "small" member."""
    width, heads, times, letters = at_size(SIZES, size)
    return only(embed=TokenEmbedding(256), width=width, head=LanguageHead(tied=True),
                body=repeat(Stack(tuple(layer(letter, heads) for letter in letters)), times=times))
