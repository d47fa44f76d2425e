"""AutoFormer: vision transformers of elastic width, depth, heads and MLP size.

AutoFormer: Searching Transformers for Visual Recognition (Chen et al., 2021). `space("t")`, `space("s")` and
`space("b")` have the paper's decisions: one width and depth for the network, and per layer the number of heads of size
64 and the MLP's ratio. Positions are a learned table alone (the paper adds a relative bias), and class scores come from
the mean of all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..architecture import Architecture
from ..choices import Choice, choice, integer, repeat
from ..operators.embedding import PatchEmbedding
from ..operators.head import ClassifierHead
from ..operators.layernorm import LayerNorm
from ..space import Space
from . import vit
from .pyramids import IMAGENET, SMALL_IMAGES
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]


@dataclass(frozen=True)
class Size:
    """depth: (least, most) layers."""

    widths: Choice
    depth: tuple[int, int]
    heads: Choice
    ratios: Choice
    head_dim: int = 64
    patch: int = 16


SIZES = {
    "tiny": Size(choice(48, 64), (2, 4), choice(2, 3), choice(2, 3), head_dim=16, patch=4),
    "t": Size(choice(192, 216, 240), (12, 14), choice(3, 4), choice(3.5, 4)),
    "s": Size(choice(320, 384, 448), (12, 14), choice(5, 6, 7), choice(3, 3.5, 4)),
    "b": Size(choice(528, 576, 624), (14, 16), choice(9, 10), choice(3, 3.5, 4)),
}


def space(size: str = "tiny") -> Space:
    """The space "t", "s" or "b" of the paper, for 224 pixels and 1,000 classes; "tiny" for 28 pixels and 10."""
    it, images = at_size(SIZES, size), SMALL_IMAGES if size == "tiny" else IMAGENET
    return Space(embed=PatchEmbedding(it.patch, images.channels, images.image), width=it.widths,
                 body=repeat(vit.block(it.heads, it.ratios, it.head_dim), times=integer(*it.depth)),
                 head=ClassifierHead(images.classes), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """The largest member of a space, which its supernet is as large as."""
    it, images = at_size(SIZES, size), SMALL_IMAGES if size == "tiny" else IMAGENET
    heads, ratio, width = (options.candidates[-1] for options in (it.heads, it.ratios, it.widths))
    return only(embed=PatchEmbedding(it.patch, images.channels, images.image), width=width,
                body=repeat(vit.block(heads, ratio, it.head_dim), times=it.depth[1]),
                head=ClassifierHead(images.classes), norm=LayerNorm())
