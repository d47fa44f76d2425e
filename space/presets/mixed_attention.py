"""The type of attention decided layer by layer.

Neural Architecture Search on Efficient Transformers and Beyond (Liu et al., 2022) mixes softmax and linear attention
and searches for the type, heads and hidden size of each layer. Linear attention is here DeltaNet without decay (the
paper has cosFormer), and a sliding window stands between the two. The paper's tasks are translation and images; this is
a decoder of text.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.gated_delta import GatedDeltaNet
from ..operators.head import LanguageHead
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Neural Architecture Search on Efficient Transformers and Beyond", 2022, options=("S028",))

# width, heads, the layers' attention: s softmax, w window, l linear
SIZES: dict[str, tuple[int, int, str]] = {"tiny": (64, 2, "lwls"), "small": (512, 8, "llwlslwlllws")}


def linear(heads: Any) -> GatedDeltaNet:
    """Linear attention with the delta rule (Yang et al., 2024)."""
    return GatedDeltaNet(heads=heads, decay=False)


def space(vocab: int = 256) -> Space:
    """Width and depth; per layer the type of attention, its heads, and the MLP's size."""
    heads = choice(2, 4)
    mixer = choice(Attention(heads=heads), Attention(heads=heads, window=64), linear(heads))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128),
                 body=repeat(Block(mixer=mixer, channel=MLP(ratio=choice(2, 3, 4))), times=integer(2, 6)),
                 head=LanguageHead(tied=True))


def fixed(size: str = "tiny") -> Architecture:
    """A "tiny" or a "small" member: mostly linear attention, some windows, full attention at the end."""
    width, heads, letters = at_size(SIZES, size)
    kinds: dict[str, Any] = {"s": Attention(heads=heads), "w": Attention(heads=heads, window=64), "l": linear(heads)}
    return only(embed=TokenEmbedding(256), width=width, head=LanguageHead(tied=True),
                body=tuple(Block(mixer=kinds[letter], channel=MLP(ratio=4)) for letter in letters))
