"""Transitions between the stages of a pyramid that are items of a stream of their own: fewer tokens, another width.

Legend: B batch, H and W rows and columns of tokens, D width in, E width out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from ..operators.checks import require_whole
from ..operators.layernorm import LayerNorm, LayerNormalisation
from ..operators.spatial import as_grid, padding, shaped_like
from .base import Macro, Numbers, Part, Visit
from .stage import after_stride

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["ConvEmbedding", "Merging", "OverlappingTokens", "at_stage_width", "strided_conv"]


class Merging(Macro, abstract=True):
    """What transitions have in common. `width` is that of the stream behind it, None to keep it; `stride` tokens along each
    dimension become one, rounded up. A sequence is a grid of one column."""

    width: Any
    stride: Any
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False

    def check(self, width: int, where: str) -> None:
        if self.width is not None:
            require_whole("width", self.width, where, instead="use None to keep it")
        require_whole("stride", self.stride, where)

    def parts(self, width: int, length: Length) -> list[Part]:
        return []

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return self.width or width, after_stride(length, (self.stride,))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        draft.width = self.width or width
        label = replace(self, width=None).label()                                       # type: ignore[type-var]
        return draft.node(f"{label}->{draft.width}", "stage", place, self, stream)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        own = numbers("width")
        return frozenset(w for w in own if w is not None) | (widths if None in own else frozenset())


def at_stage_width(prefix: str, part: Operator, width: int) -> dict[str, Param]:
    """The parameters of an operator that works behind the transition."""
    return {f"{prefix}.{name}": renamed(declared, "width", axis("stage_width", width))
            for name, declared in part.axes(width).items()}


def strided_conv(x_BHWD: Tensor, weight: Tensor, stride: int) -> Tensor:
    """[B, H, W, D] to [B, ceil(H / stride), ceil(W / stride), E], zeros outside, windows centred as far as they can be."""
    _, height, width, _ = x_BHWD.shape
    pads = (*padding(width, stride, weight.shape[-1]), *padding(height, stride, weight.shape[-2]))
    return F.conv2d(F.pad(x_BHWD.permute(0, 3, 1, 2), pads), weight, stride=stride).permute(0, 2, 3, 1)


class OverlappingTokens(nn.Module):
    """A strided convolution, then a norm."""

    def __init__(self, width: int, out_width: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_width, width, kernel, kernel))
        self.norm = LayerNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        y_BHWE: Tensor = self.norm(strided_conv(as_grid(x), self.weight, self.stride))
        return shaped_like(x, y_BHWE)


@dataclass(frozen=True)
class ConvEmbedding(Merging):
    """The convolutional token embedding of CvT (Wu et al., 2021): an overlapping strided convolution, then a layer norm.

    An item of a body between the blocks of two stages. kernel: side of its window, at least the stride; 3 at stride 2 in the
    paper, whose first one, 7 at stride 4 on pixels, is `PatchEmbedding(patch=4, kernel=7, norm=True)`.
    """

    width: Any = None
    kernel: Any = 3
    stride: Any = 2
    source: ClassVar[Source] = Source("CvT: Introducing Convolutions to Vision Transformers", 2021, options=("S032",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_whole("kernel", self.kernel, where, low=self.stride, instead="a kernel covers its stride")

    def axes(self, width: int) -> dict[str, Param]:
        out = self.width or width
        taps = (axis(f"tap{i}", self.kernel, "centre") for i in range(2))
        return {"weight": param(axis("stage_width", out), axis("width", width), *taps),
                **at_stage_width("norm", LayerNorm(), out)}

    def build(self, width: int) -> nn.Module:
        return OverlappingTokens(width, self.width or width, self.kernel, self.stride)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Every tap at every place of the smaller grid, taps outside included."""
        out, smaller = self.out(width, length)
        return float(tokens_of(smaller) * out * width * self.kernel**2)
