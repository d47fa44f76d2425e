"""SHViT: one head over some of the channels, on grids that start at a sixteenth of the image.

SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design (Yun and Ro, 2024). Four convolutions make patches of
16 pixels; of three stages the first has no attention. The batch norm in front of the scores stands before the mean over
tokens here, which is the same once its statistics are measured. Scores for distillation are not there.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.inverted_merging import InvertedMerging
from ..macros.stack import Stack
from ..operator import Source
from ..operators.batchnorm import BatchNorm
from ..operators.conv_stem import ConvStem
from ..operators.depthwise_conv2d import DepthwiseConv2d
from ..operators.head import ClassifierHead
from ..operators.layernorm import NoNorm
from ..operators.normed_mlp import NormedMLP
from ..operators.single_head_attention import SingleHeadAttention
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", 2024, systems=("S399",))

# widths, channels that attend (0 for none), blocks
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((16, 24), (0, 6), (1, 1)),
    "s1": ((128, 224, 320), (32, 48, 68), (2, 4, 5)),
    "s2": ((128, 308, 448), (32, 66, 96), (2, 4, 5)),
    "s3": ((192, 352, 448), (48, 75, 96), (3, 5, 5)),
    "s4": ((224, 336, 448), (48, 72, 96), (4, 7, 6))}


def feed_forward(ratio: Any = 2) -> Block:
    """Two matrices with batch norms."""
    return Block(channel=NormedMLP(ratio=ratio), norm=NoNorm())


def filters(kernel: Any = 3) -> Block:
    """A filter per channel, normalised, added to the stream."""
    return Block(mixer=DepthwiseConv2d(kernel=kernel), norm=BatchNorm(), placement="out")


def layer(attending: Any, ratio: Any = 2, query_dim: Any = 16, kernel: Any = 3) -> Stack:
    """One block: filters, attention of a share of the channels (None for none), feed-forward."""
    if attending is None:
        return Stack((filters(kernel), feed_forward(ratio)))
    attention = Block(mixer=SingleHeadAttention(ratio=attending, query_dim=query_dim), norm=NoNorm())
    return Stack((filters(kernel), attention, feed_forward(ratio)))


def transition(width: Any) -> tuple[Any, ...]:
    """Between two stages: half the resolution, with filters and a feed-forward layer before and behind."""
    return filters(), feed_forward(), InvertedMerging(width=width), filters(), feed_forward()


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4) -> Space:
    """Two stages on small images: their widths and depths, and per block the share that attends and its queries."""
    first = layer(None, choice(1, 2), kernel=choice(3, 5))
    second = layer(choice(0.25, 0.5), choice(1, 2), choice(8, 16), choice(3, 5))
    return Space(embed=ConvStem(patch, channels, image, activation="relu"), width=choice(16, 24),
                 body=(repeat(first, times=integer(1, 2)), *transition(choice(24, 32)), repeat(second, times=integer(1, 3))),
                 head=ClassifierHead(classes), norm=BatchNorm())


def fixed(size: str = "tiny") -> Architecture:
    """SHViT-"s1" (6.3M), "s2" (11.4M), "s3" (14.2M) or "s4" (16.5M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes, with patches of 4 pixels and two stages.
    """
    widths, attending, depths = at_size(SIZES, size)
    body: list[Any] = []
    for number, (width, share, depth) in enumerate(zip(widths, attending, depths, strict=True)):
        body += transition(width) if number else ()
        body.append(repeat(layer(share / width if number else None), times=depth))
    stem = (ConvStem(4, 1, 28, activation="relu") if size == "tiny" else ConvStem(16, 3, 224, activation="relu"))
    return only(embed=stem, width=widths[0], body=tuple(body), head=ClassifierHead(10 if size == "tiny" else 1000),
                norm=BatchNorm())
