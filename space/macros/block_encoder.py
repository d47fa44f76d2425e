"""Blocks of the sequence, each through layers of its own and down to one vector.

Legend: B batch, T tokens, L tokens of a block, N blocks, D width, E width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from .base import Macro, Numbers, Part, Runs, Visit, kept
from .looped import stream_parts

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["BlockEncoder", "BlockVectors"]


class BlockVectors(nn.Module):
    """A learned vector before every block, what the layers make of it through a linear map, at unit length.

    The last block may be shorter, and is not filled up.
    """

    def __init__(self, layers: nn.Module, width: int, out_width: int, block: int):
        super().__init__()
        self.body, self.block = layers, block
        self.first = nn.Parameter(torch.empty(width))
        self.dense = nn.Linear(width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, ceil(T / L), E]"""
        x_BTD = x.flatten(1, -2)
        whole = x_BTD.shape[1] // self.block * self.block
        pieces = (x_BTD[:, :whole].reshape(-1, self.block, x_BTD.shape[-1]), x_BTD[:, whole:])
        found = [self.vectors(piece).reshape(len(x_BTD), -1, self.dense.out_features) for piece in pieces if piece.numel()]
        return torch.cat(found, 1)

    def vectors(self, x_NLD: Tensor) -> Tensor:
        first_N1D = self.first.expand(len(x_NLD), 1, -1)
        return F.normalize(self.dense(self.body(torch.cat([first_N1D, x_NLD], 1))[:, 0]), dim=-1)


@dataclass(frozen=True)
class BlockEncoder(Macro):
    """The lower level of SMITH (Yang et al., 2020): a document in blocks of `block` tokens, each a vector of its own.

    layers: over the tokens of one block behind a learned vector, at the stream's width; they look both ways, or the vector
    sees nothing. That vector's output, through a linear map and at unit length, stands for the block. width: of these
    vectors; None keeps the stream's. What follows in the body is the upper level, over one vector per block:

        body=(BlockEncoder(layers, block=32), *layers over blocks)

    The sequence is as short behind it as there are blocks, so it belongs under a head that judges whole sequences; it does
    not stream. The pretraining of the paper, which predicts masked blocks beside masked words, is not here.
    """

    layers: Any
    block: Any = 32
    width: Any = None
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_block_encoder.py"
    source: ClassVar[Source] = Source("Beyond 512 Tokens: Siamese Multi-depth Transformer-based Hierarchical Encoder for "
                                      "Long-Form Document Matching", 2020, options=("S049",))

    def check(self, width: int, where: str) -> None:
        require_whole("block", self.block, where)
        if self.width is not None:
            require_whole("width", self.width, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, e = axis("width", width), axis("stage_width", self.width or width)
        return {"first": param(d, init=Init("normal", gain=0.02)), "dense.weight": param(e, d),
                "dense.bias": param(e, init="zeros")}

    def blocks(self, length: Length) -> int:
        """How many there are."""
        return -(-tokens_of(length) // self.block)                                    # type: ignore[no-any-return]

    def parts(self, width: int, length: Length) -> list[Part]:
        whole, rest = divmod(tokens_of(length), self.block)
        runs = Runs(tuple((1 + size, float(count)) for size, count in ((self.block, whole), (rest, 1)) if size and count))
        return [part._replace(runs=runs)
                for part in stream_parts(self.layers, "layers", width, 1 + self.block, "body.layers")]

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return self.width or width, self.blocks(length)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(width * (self.width or width) * self.blocks(length))

    def build(self, width: int) -> nn.Module:
        layers = Layers(built_layers([entry.item for entry in kept(self.layers)], width))
        return BlockVectors(layers, width, self.width or width, self.block)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "blocks", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.body.layers", width)
        draft.width = self.width or width
        return draft.node("block vectors", "blocks", "", None, end)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        visit("layers", widths)
        own = numbers("width")
        return frozenset(w for w in own if w is not None) | (widths if None in own else frozenset())
