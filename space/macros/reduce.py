"""Items of a stream that change how many tokens go on: a reduction by features, and a class token in front.

Legend: B batch, N tokens, M tokens after, C class tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import operator_label
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from ..operators.spatial import shaped_like
from .base import Macro, Numbers, Part, Visit
from .reduced import reduced_stream
from .reductions import Reduction

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["ClassToken", "Reduce", "ReducedTokens", "WithClassTokens"]


class _Item(Macro, abstract=True):
    """An item without parts, whose stream has another length."""

    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False

    def parts(self, width: int, length: Length) -> list[Part]:
        return []

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        return draft.node(self.label(), "reduce", place, self, stream)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        return widths


class ReducedTokens(nn.Module):
    """W X, with W made of the stream itself."""

    def __init__(self, chooser: nn.Module):
        super().__init__()
        self.chooser = chooser

    def forward(self, x: Tensor) -> Tensor:
        x_BND = x.flatten(1, -2)
        way = self.chooser(x, x_BND, None, torch.ones_like(x_BND[..., 0]))
        return reduced_stream(x, way.apply(x_BND), self.chooser)


@dataclass(frozen=True)
class Reduce(_Item):
    """Fewer tokens from here on: X' = W X, one matrix whichever reduction makes it (Token Transforming, Zeng et al., 2025).

    reduction: one that asks for no attention: `Clusters`, `FirstTokens`, or `ToMe` and `PiToMe`, for which the tokens
    themselves stand in the place of keys. Those that read attention, and reductions inside layers or back again behind them,
    are `Reduced`. A grid becomes a grid of one column, or for `Clusters` a smaller grid. There are no parameters.
    """

    reduction: Any
    proof: ClassVar[str] = "tests/space/test_reductions.py -k item"
    source: ClassVar[Source] = Reduction.source

    def check(self, width: int, where: str) -> None:
        if not isinstance(self.reduction, Reduction):
            raise TypeError(f"reduction is one such as ToMe() or Clusters() at {where}: got {self.reduction!r}")
        self.reduction.check(f"{where}.reduction")
        if self.reduction.reads == "attention":
            raise ValueError(f"{type(self.reduction).__name__} reads attention, which stands in layers, at {where}: write "
                             "Reduced(layers, reduction)")

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return width, self.reduction.after(length)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(self.reduction.macs(length, width, width, 1))

    def build(self, width: int) -> nn.Module:
        return ReducedTokens(self.reduction.chooser(0.0))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        return draft.node(f"Reduce({operator_label(self.reduction)})", "reduce", place, self, stream)


class WithClassTokens(nn.Module):
    """Learned tokens, then those of the stream."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        x_BND = x.flatten(1, -2)
        y_BMD = torch.cat([self.token.expand(len(x), -1, -1), x_BND], 1)
        return shaped_like(x, y_BMD[:, :, None])


@dataclass(frozen=True)
class ClassToken(_Item):
    """A learned class token in front of the others (ViT, Dosovitskiy et al., 2020), or `count` of them.

    With `Reduce(FirstTokens())` behind the last layer the head reads it alone. Reductions between leave it as it is where
    they are told of it: `protected=1`. A grid becomes a grid of one column.
    """

    count: Any = 1
    fixed: ClassVar[Mapping[str, str]] = {"class_tokens": "the first goes on"}
    proof: ClassVar[str] = "tests/space/test_reductions.py -k class_token"
    source: ClassVar[Source] = Source("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020)

    def check(self, width: int, where: str) -> None:
        require_whole("count", self.count, where)

    def axes(self, width: int) -> dict[str, Param]:
        return {"token": param(axis("class_tokens", self.count), axis("width", width), init=Init("normal", gain=0.02))}

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        more = tokens_of(length) + self.count
        return width, more if isinstance(length, int) else (more, 1)

    def build(self, width: int) -> nn.Module:
        return WithClassTokens(width, self.count)
