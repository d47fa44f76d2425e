"""Conformer encoders of speech: attention and convolution between two feed-forward layers.

Conformer: Convolution-augmented Transformer for Speech Recognition (Gulati et al., 2020), the encoder with scores per
frame. The paper's half-step residuals of the feed-forward layers are left to their last matrices, positions are rotary,
four frames are stacked where the paper convolves, kernels are odd (31 for 32), and no norm follows a whole layer.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.stack import Stack
from ..operators.attention import Attention
from ..operators.conformer_conv import ConformerConv
from ..operators.embedding import FrameEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

# width, layers, heads, taps
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (48, 2, 2, 7), "s": (144, 16, 4, 31), "m": (256, 16, 4, 31), "l": (512, 17, 8, 31)}


def unit(heads: Any, kernel: Any, ratio: Any = 4, norm: Any = "batch") -> Stack:
    """One layer of the paper: feed-forward, attention, convolution, feed-forward."""
    feed_forward = MLP(ratio=ratio, activation="silu")
    return Stack((Block(channel=feed_forward, norm=LayerNorm()),
                  Block(mixer=Attention(heads=heads, bidirectional=True), norm=LayerNorm()),
                  Block(mixer=ConformerConv(kernel=kernel, norm=norm), channel=feed_forward, norm=LayerNorm())))


def space(features: int = 80, vocab: int = 128) -> Space:
    """Width and depth, and per layer heads, taps and the sizes of both feed-forward layers."""
    layer = unit(choice(2, 4), choice(7, 15, 31), choice(2, 4))
    return Space(embed=FrameEmbedding(features, stack=4), width=choice(48, 64, 96),
                 body=repeat(layer, times=integer(2, 4)), head=LanguageHead(tied=False, vocab=vocab), norm=LayerNorm())


def fixed(size: str = "tiny", features: int = 80, vocab: int = 128) -> Architecture:
    """The encoder of Conformer "s", "m" or "l" with scores of `vocab` tokens per frame; "tiny" has two layers."""
    width, layers, heads, kernel = at_size(SIZES, size)
    return only(embed=FrameEmbedding(features, stack=4), width=width, body=repeat(unit(heads, kernel), times=layers),
                head=LanguageHead(tied=False, vocab=vocab), norm=LayerNorm())
