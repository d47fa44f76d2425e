"""AsCAN: convolution blocks early, transformer blocks late, in a layout that shifts from stage to stage.

AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation (Kag et al., 2024). A stage is a
word of C (fused mobile convolution with squeeze and excitation) and T (attention over all tokens and an MLP), each with at
least as many T as the one before. `fixed` recognises images: a stem of convolutions and four stages. `generator` makes them:
a denoising U of the same stages, going up through every stage in reverse order, whose T also attend to a text between
attention and MLP. The layout is the paper's, as are the kinds of blocks; words, widths and depths are chosen here, and do not
reproduce its sizes. Readings taken of the generator: a time sets the norm before every sublayer (`AdaNorm`), stages going up
read those of their resolution concatenated, and the lowest stage stands once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.prompted import Prompted
from ..macros.stack import Stack
from ..macros.ushape import UShape
from ..operator import Source
from ..operators.ada_norm import AdaNorm
from ..operators.attention import Attention
from ..operators.conv_stem import ConvStem
from ..operators.cross_attention import CrossAttention
from ..operators.dense_head import DenseHead
from ..operators.fused_mobile_conv import FusedMobileConv
from ..operators.head import ClassifierHead
from ..operators.latent_embedding import LatentEmbedding
from ..operators.layernorm import LayerNorm, NoNorm
from ..operators.mlp import MLP
from ..plan import Block
from ..space import Space
from .pyramids import stages
from .sizes import at_size, only

__all__ = ["GENERATORS", "SIZES", "fixed", "generator", "generators", "space"]

source = Source("AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation", 2024,
                systems=("S315",))

# widths, the blocks of every stage, size of a head
SIZES: dict[str, tuple[tuple[int, ...], tuple[str, ...], int]] = {
    "tiny": ((16, 24, 32), ("C", "CT", "TT"), 8),
    "t": ((64, 128, 256, 512), ("CC", "CCCT", "CCTTTT", "TTTT"), 32),
    "b": ((96, 192, 384, 768), ("CC", "CCCT", "CCTTTT", "TTTT"), 32)}


# widths, the blocks of every stage, size of a head, features of a text's token, side of the latents
GENERATORS: dict[str, tuple[tuple[int, ...], tuple[str, ...], int, int, int]] = {
    "tiny": ((16, 24, 32), ("C", "CT", "TT"), 8, 12, 8),
    "t2i": ((320, 640, 1280), ("CC", "CCT", "CTTT"), 64, 2048, 64)}

SCHEDULES = (("C", "CT", "TT"), ("CC", "CT", "CT"), ("C", "CC", "TT"), ("C", "CTT", "TTT"))


def convolution(kernel: Any = 3, expand: Any = 4) -> Block:
    """A block C."""
    return Block(mixer=FusedMobileConv(kernel=kernel, expand=expand), norm=NoNorm())


def transformer(heads: Any, ratio: Any = 4) -> Block:
    """A block T."""
    return Block(mixer=Attention(heads=heads, bidirectional=True, rotary=False), channel=MLP(ratio=ratio), norm=LayerNorm())


def spelled(layout: str, heads: int) -> tuple[Block, ...]:
    """The blocks of a stage."""
    return tuple(convolution() if letter == "C" else transformer(heads) for letter in layout)


def prompted(layout: str, heads: int) -> tuple[Block, ...]:
    """The blocks of a stage that reads a time, and a text in every T: its MLP follows the attention to the text."""
    made: list[Block] = []
    for letter in layout:
        if letter == "C":
            made.append(Block(mixer=FusedMobileConv(), norm=AdaNorm()))
        else:
            made.append(Block(mixer=Attention(heads=heads, bidirectional=True, rotary=False), norm=AdaNorm()))
            made.append(Block(mixer=CrossAttention(heads=heads), channel=MLP(ratio=4), norm=AdaNorm()))
    return tuple(made)


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Three stages: their widths, how many blocks of each kind, and per block its size."""
    numbers = (((1, 3), (0, 0)), ((1, 2), (0, 1)), ((0, 1), (1, 3)))
    layers = [(repeat(convolution(choice(1, 3), choice(2, 4)), times=integer(*c)),
               *([repeat(transformer(2, choice(2, 4)), times=integer(*t))] if t[1] else [])) for c, t in numbers]
    return Space(embed=ConvStem(patch, channels, image), width=choice(16, 24),
                 body=stages((None, choice(24, 32), choice(32, 48)), layers, kernel=3), head=ClassifierHead(classes),
                 norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """Four stages of "t" or, half as wide again, "b", for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    widths, layouts, head_dim = at_size(SIZES, size)
    layers = [spelled(layout, width // head_dim) for layout, width in zip(layouts, widths, strict=True)]
    stem = ConvStem(patch=2, channels=1, image=28) if size == "tiny" else ConvStem()
    return only(embed=stem, width=widths[0], body=stages(widths, layers, kernel=3),
                head=ClassifierHead(10 if size == "tiny" else 1000), norm=LayerNorm())


def tower(widths: Sequence[int], layouts: Sequence[str], head_dim: int) -> tuple[Any, ...]:
    """The layers of a generator: down through the stages, up through them in reverse order, the lowest standing once."""
    body: tuple[Any, ...] = prompted(layouts[-1], widths[-1] // head_dim)
    for layout, width, below in reversed(list(zip(layouts, widths, widths[1:], strict=False))):
        heads = width // head_dim
        body = (UShape(before=prompted(layout, heads), inner=body, after=prompted(layout[::-1], heads), stride=(2, 2),
                       width=below, skip="concat", carry=("memory", "condition")),)
    return body


def generator(size: str = "tiny") -> Architecture:
    """`model(latents, source)` gives what is predicted at every place: latents of 4 channels, of 64 x 64 for "t2i".

    The first row of the source tells the time, the others the text: see `Prompted`.
    """
    widths, layouts, head_dim, features, side = at_size(GENERATORS, size)
    return only(**_around(Prompted(tower(widths, layouts, head_dim), features=features), widths[0], side))


def generators(widths: Sequence[int] = (16, 24, 32), layouts: Sequence[Sequence[str]] = SCHEDULES, head_dim: int = 8,
               features: int = 12, image: int = 8) -> Space:
    """Generators that differ in their layout, a word of C and T per stage.

    Raises:
        ValueError: a layout has another letter, or not a word per width.
    """
    for words in layouts:
        if len(words) != len(widths) or set("".join(words)) - set("CT") or not all(words):
            raise ValueError(f"a layout has a word of C and T for each of {len(widths)} widths: got {words!r}")
    body = choice(*(Stack(tower(widths, words, head_dim)) for words in layouts))
    return Space(**_around(Prompted(body, features=features), widths[0], image))


def _around(body: Prompted, width: int, side: int) -> dict[str, Any]:
    return {"embed": LatentEmbedding(channels=4, image=side), "width": width, "body": body,
            "head": DenseHead(classes=4, hidden=width), "norm": LayerNorm()}
