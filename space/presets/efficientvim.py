"""EfficientViM: states that are gated and projected in the place of tokens, and a classifier that reads those of every stage.

EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality (Lee et al., 2024). Four convolutions
make patches of 16 pixels; three stages. One bias of class scores for four, and without rates that a softmax cancels: 0.1 %
fewer parameters than published. Scores for distillation are not there.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.inverted_merging import InvertedMerging
from ..macros.stack import Stack
from ..macros.state_fusion import StateFusion
from ..macros.stream_norm import StreamNorm
from ..operator import Source
from ..operators.batchnorm import BatchNorm
from ..operators.blend import Blend
from ..operators.conv_stem import ConvStem
from ..operators.depthwise_conv2d import DepthwiseConv2d
from ..operators.head import ClassifierHead
from ..operators.hidden_state_mixer import HiddenStateMixer
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.normed_mlp import NormedMLP
from ..plan import Block
from ..space import Space
from .shvit import filters
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality", 2024,
                systems=("S361",))

# widths, blocks, states
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((16, 24, 32), (1, 1, 1), (9, 6, 4)),
    "m1": ((128, 192, 320), (2, 2, 2), (49, 25, 9)),
    "m2": ((128, 256, 512), (2, 2, 2), (49, 25, 9)),
    "m3": ((224, 320, 512), (2, 2, 2), (49, 25, 9)),
    "m4": ((224, 320, 512), (3, 4, 2), (64, 32, 16))}


def layer(state: Any, ratio: Any = 4, kernel: Any = 3, tells: bool = False) -> Stack:
    """One block: filters, states, filters, feed-forward, each in learned shares with the stream."""
    blended = Block(mixer=DepthwiseConv2d(kernel=kernel), norm=BatchNorm(), placement="out", join=Blend())
    return Stack((blended, Block(mixer=HiddenStateMixer(state=state, tells=tells), norm=LayerNorm(), join=Blend()), blended,
                  Block(channel=NormedMLP(ratio=ratio), norm=NoNorm(), join=Blend())))


def transition(width: Any) -> tuple[Any, ...]:
    """Between two stages: filters, a bottleneck four times as wide as what comes out, filters."""
    return filters(), InvertedMerging(width=width, of="out"), filters()


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4) -> Space:
    """Three stages on small images: their widths and depths, and per block its states and the size of its MLP."""
    def stage(states: Any) -> tuple[Any, Any]:
        block = layer(states, choice(1, 2), choice(3, 5))
        return repeat(block, times=integer(0, 2)), layer(states, choice(1, 2), tells=True)

    return Space(embed=ConvStem(patch, channels, image, activation="relu"), width=choice(16, 24), norm=NoNorm(),
                 body=StateFusion(stage(choice(9, 16)), (*transition(choice(24, 32)), *stage(choice(6, 9))),
                                  (*transition(choice(32, 48)), *stage(choice(2, 4)), StreamNorm(LayerNorm()))),
                 head=ClassifierHead(classes))


def fixed(size: str = "tiny") -> Architecture:
    """EfficientViM-"m1" (6.7M), "m2" (13.9M), "m3" (16.6M) or "m4" (19.6M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes, with patches of 4 pixels.
    """
    widths, depths, states = at_size(SIZES, size)
    stages = [(repeat(layer(state), times=depth - 1), layer(state, tells=True)) for depth, state in
              zip(depths, states, strict=True)]
    body = StateFusion(stages[0], (*transition(widths[1]), *stages[1]),
                       (*transition(widths[2]), *stages[2], StreamNorm(LayerNorm())))
    stem = (ConvStem(4, 1, 28, activation="relu") if size == "tiny" else ConvStem(16, 3, 224, activation="relu"))
    return only(embed=stem, width=widths[0], body=body, head=ClassifierHead(10 if size == "tiny" else 1000), norm=NoNorm())
