"""Squeezeformer encoders of speech: a U in time around layers of attention, MLP, convolution, MLP.

Squeezeformer: An Efficient Transformer for Automatic Speech Recognition (Kim et al., 2022): a layer norm behind every
residual sum and a learned scale before every module, swish throughout, depthwise separable subsampling of the
spectrogram; the rate halves before the middle, by a separable convolution, and is back for the last layer. Positions are
rotary (relative, with a matrix per layer, in the paper), so heads are of even size (48 for 49 in "s", 80 for 81 in "m");
matrices have no biases.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.stack import Stack
from ..macros.stream_norm import StreamNorm
from ..macros.ushape import UShape
from ..operator import Source
from ..operators.attention import Attention
from ..operators.channel_scale import ChannelScale
from ..operators.frame_conv import FrameConvEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.mlp import MLP
from ..operators.squeezeformer_conv import SqueezeformerConv
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("Squeezeformer: An Efficient Transformer for Automatic Speech Recognition", 2022, systems=("S127",))

# width, layers, heads, taps
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (48, 4, 2, 7), "xs": (144, 16, 4, 31), "s": (196, 18, 4, 31), "sm": (256, 16, 4, 31),
    "m": (324, 20, 4, 31), "ml": (512, 18, 8, 31), "l": (640, 22, 8, 31)}


def unit(heads: Any, kernel: Any, ratio: Any = 4, head_dim: Any = None) -> Stack:
    """One layer of the paper: attention, feed-forward, convolution, feed-forward."""
    feed_forward = MLP(ratio=ratio, activation="silu")
    attention = Attention(heads=heads, head_dim=head_dim, bidirectional=True)
    modules = ({"mixer": attention}, {"channel": feed_forward}, {"mixer": SqueezeformerConv(kernel=kernel)},
               {"channel": feed_forward})
    return Stack(tuple(item for module in modules
                       for item in (Block(**module, norm=ChannelScale()), StreamNorm(LayerNorm()))))


def space(features: int = 80, vocab: int = 128) -> Space:
    """Width, depth before and inside the U, and per layer heads, taps and the feed-forward layers' size."""
    layer = unit(choice(2, 4), choice(7, 15, 31), choice(2, 4))
    u = UShape(before=repeat(layer, times=integer(1, 2)), inner=repeat(layer, times=integer(1, 3)), after=layer,
               resample="separable")
    return Space(embed=FrameConvEmbedding(features), width=choice(48, 64, 96), body=(StreamNorm(LayerNorm()), u),
                 head=LanguageHead(tied=False, vocab=vocab), norm=NoNorm())


def fixed(size: str = "tiny", features: int = 80, vocab: int = 128) -> Architecture:
    """The encoder of Squeezeformer "xs", "s", "sm", "m", "ml" or "l" with scores of `vocab` tokens per frame.

    "tiny" has four layers.
    """
    width, layers, heads, kernel = at_size(SIZES, size)
    layer, before = unit(heads, kernel, head_dim=width // heads // 2 * 2), layers // 2 - 1
    u = UShape(before=repeat(layer, times=before), inner=repeat(layer, times=layers - before - 1), after=layer,
               resample="separable")
    return only(embed=FrameConvEmbedding(features), width=width, body=(StreamNorm(LayerNorm()), u),
                head=LanguageHead(tied=False, vocab=vocab), norm=NoNorm())
