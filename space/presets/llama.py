"""Llama: RMS norm, rotary positions, grouped-query attention, SwiGLU.

LLaMA: Open and Efficient Foundation Language Models (Touvron et al., 2023); Llama 2 (Touvron et al., 2023); The Llama 3
Herd of Models (Grattafiori et al., 2024). Shapes and parameters are exactly the published ones; tokens enter times
sqrt(width), as everywhere here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.rmsnorm import RMSNorm
from ..operators.swiglu import SwiGLU
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]


@dataclass(frozen=True)
class Size:
    """One published model. ratio: hidden size over width."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ratio: float
    eps: float = 1e-5
    rope_base: float = 10000.0


SIZES = {
    "tiny": Size(256, 64, 3, 4, 2, 3),
    "7b": Size(32000, 4096, 32, 32, 32, 11008 / 4096, eps=1e-6),
    "13b": Size(32000, 5120, 40, 40, 40, 13824 / 5120, eps=1e-6),
    "2-70b": Size(32000, 8192, 80, 64, 8, 3.5),
    "3-8b": Size(128256, 4096, 32, 32, 8, 3.5, rope_base=500000.0),
    "3-70b": Size(128256, 8192, 80, 64, 8, 3.5, rope_base=500000.0),
}


def block(heads: Any, kv_heads: Any, ratio: Any, eps: float = 1e-5, rope_base: float = 10000.0) -> Block:
    """One layer."""
    return Block(mixer=Attention(heads=heads, kv_heads=kv_heads, rope_base=rope_base), channel=SwiGLU(ratio),
                 norm=RMSNorm(eps))


def space(vocab: int = 256) -> Space:
    """Width, depth, key/value heads of the whole network, and per layer the hidden size."""
    layer = block(4, tied(choice(1, 2, 4)), choice(2, 8 / 3, 3.5))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(layer, times=integer(2, 6)),
                 head=LanguageHead(tied=True))


def fixed(size: str = "tiny") -> Architecture:
    """Llama "7b" or "13b", Llama 2 "2-70b", Llama 3 "3-8b" or "3-70b"; "tiny" has bytes as tokens."""
    it = at_size(SIZES, size)
    layer = block(it.heads, it.kv_heads, it.ratio, it.eps, it.rope_base)
    return only(embed=TokenEmbedding(it.vocab), width=it.width, body=repeat(layer, times=it.layers),
                head=LanguageHead(tied=False), norm=RMSNorm(it.eps))
