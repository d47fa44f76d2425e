"""TransNormerLLM: linear attention with decays that slow down from layer to layer.

Scaling TransNormer to 175 Billion Parameters (Qin et al., 2023). Norms have no gains, gates no activations; the first
layer turns queries and keys by learned frequencies (LRPE), the others know positions by their decays alone. Head h of H in
layer l of L keeps exp(-(8 h / H) (1 - l / L)) of its memory a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Architecture
from ..choices import choice, repeat
from ..operator import Source
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.retention import Lightning
from ..operators.rmsnorm import RMSNorm
from ..operators.swiglu import SwiGLU
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Scaling TransNormer to 175 Billion Parameters", 2023, options=("S380",))


@dataclass(frozen=True)
class Size:
    vocab: int
    width: int
    layers: int
    heads: int
    ratio: float


SIZES = {"tiny": Size(256, 64, 4, 4, 2)}


def block(heads: Any, ratio: Any, decay_scale: Any = 1.0, position: Any = None) -> Block:
    """Gated linear attention and the gated unit after it, both without activations on their gates."""
    return Block(mixer=Lightning(heads=heads, decay_scale=decay_scale, position=position),
                 channel=SwiGLU(ratio, activation=None), norm=RMSNorm(gain=False))


def space(vocab: int = 256) -> Space:
    """Width, depth, and per layer heads, positions, the speed of the decays and the size of the gated unit."""
    each = block(choice(2, 4), choice(2, 3), choice(0.25, 0.5, 1.0), choice(None, "lrpe"))
    return Space(embed=TokenEmbedding(vocab), width=choice(64, 96, 128), body=repeat(each, times=choice(4, 6)),
                 head=LanguageHead(tied=True))


def fixed(size: str = "tiny") -> Architecture:
    """Four layers with bytes as tokens."""
    it = at_size(SIZES, size)
    body = tuple(block(it.heads, it.ratio, 1 - layer / it.layers, None if layer else "lrpe") for layer in range(it.layers))
    return only(embed=TokenEmbedding(it.vocab), width=it.width, body=body, head=LanguageHead(tied=True),
                norm=RMSNorm(gain=False))
