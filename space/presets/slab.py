"""SLAB: simplified linear attention, and layer norms that turn into batch norms while they train.

SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization (Guo et
al., 2024), as DeiT and as Swin. Once the annealing is over, `folded` makes the norms of the former scales and shifts, and
`folded_into` puts these into the matrices behind them. Without biases of matrices; transitions of the pyramid are those of
`presets.swin`, with the paper's norm.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat, tied
from ..macros.stack import Stack
from ..operator import Source
from ..operators.embedding import PatchEmbedding
from ..operators.head import ClassifierHead
from ..operators.mlp import MLP
from ..operators.prepbn import PRepBN
from ..operators.simplified_linear_attention import SimplifiedLinearAttention
from ..plan import Block
from ..space import Space
from .pyramids import IMAGENET, SMALL_IMAGES, stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch "
                "Normalization", 2024, systems=("S204",))

# width of the first stage, layers per stage (one stage: no pyramid), size of a head, steps of annealing
SIZES: dict[str, tuple[int, tuple[int, ...], int, int]] = {
    "tiny": (32, (2,), 16, 100), "deit_t": (192, (12,), 64, 300_000), "deit_s": (384, (12,), 64, 300_000),
    "swin_t": (96, (2, 2, 6, 2), 32, 60_000), "swin_s": (96, (2, 2, 18, 2), 32, 60_000)}


def layer(heads: Any, steps: int, side: int, window: int | None = None, shift: bool = False, ratio: Any = 4,
          kernel: Any = 5) -> Block:
    """One layer: linear attention over the grid or in windows, and an MLP."""
    mixer = SimplifiedLinearAttention(heads, window, shift, kernel, side)
    return Block(mixer=mixer, channel=MLP(ratio=ratio), norm=PRepBN(steps))


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4, steps: int = 100) -> Space:
    """Width and heads of the whole network, depth, and per layer the filter and the size of the MLP."""
    block = layer(tied(choice(2, 4)), steps, image // patch, ratio=choice(2, 3, 4), kernel=choice(3, 5))
    return Space(embed=PatchEmbedding(patch, channels, image, grid=True, position=True), width=choice(32, 48),
                 body=repeat(block, times=integer(1, 3)), head=ClassifierHead(classes), norm=PRepBN(steps))


def fixed(size: str = "tiny") -> Architecture:
    """SLAB-DeiT "deit_t" or "deit_s", or SLAB-Swin "swin_t" or "swin_s", for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    first, depths, head_dim, steps = at_size(SIZES, size)
    widths = [first * 2**i for i in range(len(depths))]
    if len(depths) == 1:
        patch, images = (4, SMALL_IMAGES) if size == "tiny" else (16, IMAGENET)
        body: Any = repeat(layer(first // head_dim, steps, images.image // patch), times=depths[0])
        embed = PatchEmbedding(patch, images.channels, images.image, grid=True, position=True)
        return only(embed=embed, width=first, body=body, head=ClassifierHead(images.classes), norm=PRepBN(steps))
    def pair(width: int) -> Stack:
        return Stack(tuple(layer(width // head_dim, steps, 7, 7, shift) for shift in (False, True)))

    pairs = [(repeat(pair(width), depth // 2),) for width, depth in zip(widths, depths, strict=True)]
    return only(embed=IMAGENET.grid(), width=first, body=stages(widths, pairs, norm=PRepBN(steps)),
                head=ClassifierHead(IMAGENET.classes), norm=PRepBN(steps))
