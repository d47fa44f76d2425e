"""LightHuBERT: a once-for-all encoder of speech.

LightHuBERT: Lightweight and Configurable Speech Representation Learning with Once-for-All Hidden-Unit BERT (Wang et
al., 2022). `space("base")` and `space("small")` have the paper's decisions: one width, and per layer the number of
heads of size 64 and the feed-forward ratio; "small" also decides the depth. What comes in are the frames of the
convolutional feature extractor, which is not part of the search, and positions are rotary in place of a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..architecture import Architecture
from ..choices import Choice, choice, integer, repeat
from ..operator import Source
from ..operators.attention import Attention
from ..operators.embedding import FrameEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("LightHuBERT: Lightweight and Configurable Speech Representation Learning with Once-for-All "
                "Hidden-Unit BERT", 2022, options=("S370",))


@dataclass(frozen=True)
class Size:
    """depth: (least, most) layers. middle: width and heads of the fixed member, with the largest ratio."""

    widths: Choice
    depth: tuple[int, int]
    heads: Choice
    ratios: Choice
    middle: tuple[int, int]
    features: int = 512
    head_dim: int = 64


SIZES = {
    "tiny": Size(choice(32, 48, 64), (2, 3), choice(2, 3, 4), choice(2, 3), (48, 3), features=40, head_dim=16),
    "small": Size(choice(256, 384, 512), (10, 12), choice(4, 6, 8), choice(3, 3.5, 4), (384, 6)),
    "base": Size(choice(512, 640, 768), (12, 12), choice(8, 10, 12), choice(3.5, 4), (640, 10)),
}


def block(heads: object, ratio: object, head_dim: int) -> Block:
    """One layer."""
    return Block(mixer=Attention(heads=heads, head_dim=head_dim, bidirectional=True), channel=MLP(ratio=ratio),
                 norm=LayerNorm())


def space(size: str = "tiny", units: int = 504) -> Space:
    """The space "base" (6 * 10^9 networks) or "small" of the paper, scoring `units` hidden units per frame."""
    it = at_size(SIZES, size)
    times = integer(*it.depth) if it.depth[0] < it.depth[1] else it.depth[0]
    return Space(embed=FrameEmbedding(it.features, stack=1), width=it.widths,
                 body=repeat(block(it.heads, it.ratios, it.head_dim), times=times),
                 head=LanguageHead(tied=False, vocab=units), norm=LayerNorm())


def fixed(size: str = "tiny", units: int = 504) -> Architecture:
    """The member in the middle of a space."""
    it = at_size(SIZES, size)
    width, heads = it.middle
    return only(embed=FrameEmbedding(it.features, stack=1), width=width,
                body=repeat(block(heads, it.ratios.candidates[-1], it.head_dim), times=it.depth[1]),
                head=LanguageHead(tied=False, vocab=units), norm=LayerNorm())
