"""RaftMLP: a pyramid of token MLPs along columns and along rows.

RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality? (Tatsunami and Taki, 2021). Patches of two
sizes at once are one convolution of the larger, which is what their sum is. Without biases.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.stack import Stack
from ..macros.stage import Stage
from ..operator import Source
from ..operators.embedding import PatchEmbedding
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP
from ..operators.raft_mlp import RaftMLP
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?", 2021, systems=("S323",))

# widths, layers per stage
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((16, 32), (1, 2)), "s": ((64, 128, 256, 512), (2, 2, 6, 2)), "m": ((96, 192, 384, 768), (2, 2, 6, 2)),
    "l": ((128, 192, 512, 1024), (2, 2, 6, 2))}


def layer(side: int, raft: Any = 2, tokens: Any = 2, ratio: Any = 4) -> Stack:
    """One layer on a grid of this side: rows of every column, columns of every row, channels."""
    return Stack((Block(mixer=RaftMLP(side, raft, tokens, "rows"), norm=LayerNorm()),
                  Block(mixer=RaftMLP(side, raft, tokens, "columns"), channel=MLP(ratio=ratio), norm=LayerNorm())))


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Two stages: their widths and depths, and per layer the rafts, and the size of MLPs over tokens and channels."""
    side = image // patch
    layers = [(repeat(layer(each, choice(1, 2, 4), choice(1, 2), choice(2, 4)), times=integer(1, 3)),)
              for each in (side, -(-side // 2))]
    body = (*layers[0], Stage(layers[1], width=choice(32, 48), stride=(2, 2), kernel=choice(2, 4)))
    return Space(embed=PatchEmbedding(patch, channels, image, grid=True, position=False, kernel=2 * patch),
                 width=choice(16, 32), body=body, head=ClassifierHead(classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """RaftMLP-"s" (9.9M), "m" (21M) or "l" (36M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, depths = at_size(SIZES, size)
    images = SMALL_IMAGES if size == "tiny" else IMAGENET
    sides = [-(-images.image // images.patch // 2**stage) for stage in range(len(depths))]
    body: list[Any] = [repeat(layer(sides[0]), times=depths[0])]
    for stage in range(1, len(depths)):
        kernel = 4 if stage + 1 < len(depths) else 2                # the last patches are of one size
        body.append(Stage((repeat(layer(sides[stage]), times=depths[stage]),), width=widths[stage], stride=(2, 2),
                          kernel=kernel))
    stem = PatchEmbedding(images.patch, images.channels, images.image, grid=True, position=False, kernel=2 * images.patch)
    return only(embed=stem, width=widths[0], body=tuple(body), head=ClassifierHead(images.classes), norm=LayerNorm())
