"""Wide attention: the same heads in one wide layer, in many narrow ones, or between, for any attention mechanism.

Wide Attention Is The Way Forward For Transformers? (Brown et al., 2022). The total number of heads and the size of a head
are fixed; the layers share the heads, so that fewer layers are wider ones and there are fewer feed-forward layers with
them, which is where a wide network is smaller. The paper compares ten mechanisms in encoders of text; these are the ones
that are here, and `mechanism` takes any other. Positions are rotary, or the mechanism's own, instead of a learned table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..architecture import Architecture
from ..choices import choice, repeat
from ..macros.stack import Stack
from ..operator import Operator, Source
from ..operators.attention import Attention
from ..operators.embedding import TokenEmbedding
from ..operators.estimated_attention import SEA
from ..operators.hash_attention import EcoFormer
from ..operators.head import ClassifierHead
from ..operators.hierarchical_attention import HierarchicalAttention
from ..operators.layernorm import LayerNorm
from ..operators.linear_attention import LinearAttention
from ..operators.lsh_attention import LSHAttention
from ..operators.mlp import MLP
from ..operators.nprf import NPRF
from ..operators.sparsifiner import Sparsifiner
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["MECHANISMS", "SIZES", "aspects", "fixed", "space"]

source = Source("Wide Attention Is The Way Forward For Transformers?", 2022, systems=("S144",))

Mechanism = Callable[[int, int], Operator]              # (heads, head_dim) -> the mixer

MECHANISMS: Mapping[str, Mechanism] = {
    "softmax": lambda heads, head_dim: Attention(heads, head_dim=head_dim, bidirectional=True),
    "window": lambda heads, head_dim: Attention(heads, head_dim=head_dim, window=32, bidirectional=True),
    "linear": lambda heads, head_dim: LinearAttention(heads, head_dim=head_dim, bidirectional=True),
    "random_features": lambda heads, head_dim: NPRF(heads, head_dim=head_dim, features=32, bidirectional=True),
    "hierarchical": lambda heads, head_dim: HierarchicalAttention(heads, head_dim=head_dim),
    "estimated": lambda heads, head_dim: SEA(heads, head_dim=head_dim, tokens=32),
    "sparse": lambda heads, head_dim: Sparsifiner(heads, head_dim=head_dim),
    "hashed": lambda heads, head_dim: EcoFormer(heads, head_dim=head_dim),
    "lsh": lambda heads, head_dim: LSHAttention(heads, head_dim=head_dim)}

# width, layers, heads of a layer, size of a head. The paper's networks for bytes of text: 48 heads, deep and wide.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 1, 8, 8), "deep": (512, 6, 8, 64), "middle": (512, 2, 24, 64), "wide": (512, 1, 48, 64)}


def aspects(total_heads: int) -> tuple[int, ...]:
    """Every number of layers among which the heads can be divided evenly."""
    return tuple(layers for layers in range(1, total_heads + 1) if total_heads % layers == 0)


def layers(number: Any, total_heads: int, head_dim: int, mechanism: Mechanism, ratio: Any = 4) -> Stack:
    """So many layers, which share the heads."""
    block = Block(mixer=mechanism(total_heads // number, head_dim), channel=MLP(ratio=ratio, activation="relu"),
                  norm=LayerNorm())
    return Stack(repeat(block, times=number))


def space(vocab: int = 256, classes: int = 2, total_heads: int = 12, head_dim: int = 8, width: int = 32,
          mechanisms: Mapping[str, Mechanism] | tuple[str, ...] = ("softmax", "window", "linear")) -> Space:
    """One decision, the aspect ratio, for each of the mechanisms: names of `MECHANISMS`, or functions by a name."""
    named = mechanisms if isinstance(mechanisms, Mapping) else {name: at_size(MECHANISMS, name) for name in mechanisms}
    return Space(embed=TokenEmbedding(vocab), width=width, head=ClassifierHead(classes), norm=LayerNorm(), body=choice(
        *[layers(number, total_heads, head_dim, make) for make in named.values() for number in aspects(total_heads)]))


def fixed(size: str = "tiny", mechanism: str = "softmax") -> Architecture:
    """The paper's "deep" (6 layers of 8 heads), "middle" (2 of 24) or "wide" (1 of 48) network; "tiny" is one small layer."""
    width, number, heads, head_dim = at_size(SIZES, size)
    body = layers(number, number * heads, head_dim, at_size(MECHANISMS, mechanism))
    return only(embed=TokenEmbedding(256), width=width, body=body, head=ClassifierHead(2), norm=LayerNorm())
