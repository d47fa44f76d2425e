"""Titans: decoders with a memory that learns while it reads, beside or without attention.

Titans: Learning to Memorize at Test Time (Behrouz, Zhong and Mirrokni, 2025). variant: "mac", the memory as context of
attention within segments; "mag", as gate of attention in a window; "mal", as layer before attention in a window; "lmm", the
memory alone. Every layer has a SwiGLU after its mixer; persistent tokens are of each layer, in "mal" and "lmm" of
the whole stack. The paper names no sizes but numbers of parameters, so that none of its models is here as a size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..choices import choice, repeat
from ..macros.memory_context import MemoryAsContext
from ..macros.memory_gate import MemoryAsGate
from ..macros.persistent_tokens import PersistentTokens
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.neural_memory import NeuralMemory
from ..operators.swiglu import SwiGLU
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "VARIANTS", "fixed", "space"]

source = Source("Titans: Learning to Memorize at Test Time", 2025, systems=("S394",))

VARIANTS = ("mac", "mag", "mal", "lmm")


@dataclass(frozen=True)
class Size:
    """reach: tokens of a segment or of a window. persistent: learned tokens."""

    vocab: int
    width: int
    layers: int
    heads: int
    reach: int
    persistent: int
    chunk: int


SIZES = {"tiny": Size(256, 64, 3, 4, 32, 4, 16)}


def block(mixer: Any) -> Block:
    """A mixer and the SwiGLU after it."""
    return Block(mixer=mixer, channel=SwiGLU(2))


def body(variant: str, layers: Any, memory: Any, heads: Any, reach: Any, persistent: Any, chunks: Any) -> Any:
    """The layers of one variant.

    Raises ValueError for a variant that is not there.
    """
    if variant == "mac":
        return repeat(block(MemoryAsContext(memory, chunks=chunks, persistent=persistent, heads=heads)), times=layers)
    if variant == "mag":
        return repeat(block(MemoryAsGate(memory, window=reach, persistent=persistent, heads=heads)), times=layers)
    if variant == "mal":
        layer = (Block(mixer=memory), block(Attention(heads=heads, window=reach)))
        return PersistentTokens(repeat(layer, times=layers), tokens=persistent)
    if variant == "lmm":
        return PersistentTokens(repeat(block(memory), times=layers), tokens=persistent)
    raise ValueError(f"variant is one of {', '.join(map(repr, VARIANTS))}: got {variant!r}")


def space(variant: str = "mac", vocab: int = 256) -> Space:
    """Width and depth, the memories' depth, and how far attention sees."""
    memory = NeuralMemory(heads=choice(2, 4), depth=choice(1, 2), chunk=16)
    layers = body(variant, choice(2, 3, 4), memory, choice(2, 4), choice(16, 32, 64), choice(2, 4, 8), choice(1, 2, 4))
    return Space(embed=TokenEmbedding(vocab), width=choice(32, 64, 96), body=layers, head=LanguageHead(tied=True))


def fixed(size: str = "tiny", variant: str = "mac") -> Architecture:
    """Three layers of one variant with bytes as tokens."""
    it = at_size(SIZES, size)
    return only(embed=TokenEmbedding(it.vocab), width=it.width, head=LanguageHead(tied=True), body=body(
        variant, it.layers, NeuralMemory(heads=it.heads, chunk=it.chunk), it.heads, it.reach, it.persistent,
        it.reach // it.chunk))
