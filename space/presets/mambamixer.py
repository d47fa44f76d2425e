"""MambaMixer: selective state spaces along the tokens and along the channels, each reading an average of all before.

MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection (Behrouz et al., 2024). "tiny" and
"image" are its vision network (ViM2): a grid scanned along four paths, then a scan over each token's channels; the token
mixer may scan the rows and columns, or the tokens of a sequence both ways. "series" is its network of time series (TSM2) over
frames. Widths and depths are chosen here; the paper's pyramid of four stages is `stages` of the same blocks.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.residual_average import FeatureAverage
from ..macros.stack import Stack
from ..operator import Source
from ..operators.conv_stem import ConvStem
from ..operators.embedding import FrameEmbedding
from ..operators.head import ClassifierHead, LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mamba import Mamba
from ..operators.scanned import Scanned
from ..operators.selective_channels import SelectiveChannelMixer
from ..plan import Block
from ..space import Space
from .pyramids import stages
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection", 2024,
                systems=("S350",))

# widths of the stages, blocks, states
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "tiny": ((16, 24), (1, 2), 4), "image": ((64, 128, 256, 512), (2, 2, 8, 2), 16), "series": ((128,), (4,), 16)}


def layer(state: Any = 16, grid: bool = True, size: Any = 8) -> Block:
    """A selective token mixer and a selective channel mixer, both looking both ways."""
    tokens = Scanned(mixer=Mamba(state=state, expand=1)) if grid else Mamba(state=state, bidirectional=True)
    return Block(mixer=tokens, channel=SelectiveChannelMixer(size=size, state=state), norm=LayerNorm())


def averaged(times: Any, state: Any = 16, grid: bool = True, size: Any = 8) -> Stack:
    """So many layers, each half of which reads an average of all before."""
    return Stack(repeat(layer(state, grid, size), times=times), FeatureAverage())


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 4) -> Space:
    """Two stages: their widths and depths, and per layer the states and the channels of a group."""
    first, second = (averaged(times, choice(2, 4), size=choice(4, 8)) for times in (integer(1, 2), integer(1, 3)))
    return Space(embed=ConvStem(patch, channels, image), width=choice(16, 24), head=ClassifierHead(classes),
                 body=stages((None, choice(24, 32)), ((first,), (second,)), kernel=3), norm=LayerNorm())


def fixed(size: str = "tiny") -> Architecture:
    """A network of "image"s of 224 pixels and 1,000 classes, or of time "series" of 8 features, 8 forecasts per frame.

    "tiny" is for 28 pixels and 10 classes, with patches of 4 pixels and two stages.
    """
    widths, depths, state = at_size(SIZES, size)
    layers = [(averaged(times, state, grid=size != "series"),) for times in depths]
    if size == "series":
        return only(embed=FrameEmbedding(8, stack=1), width=widths[0], body=layers[0], norm=LayerNorm(),
                    head=LanguageHead(tied=False, vocab=8))
    stem = ConvStem(4, 1, 28) if size == "tiny" else ConvStem(4, 3, 224)
    return only(embed=stem, width=widths[0], body=stages(widths, layers, kernel=3),
                head=ClassifierHead(10 if size == "tiny" else 1000), norm=LayerNorm())
