"""Layers that each read the concatenation of all earlier ones of their group.

Legend: B batch, T tokens, D width, G growth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..graph import RESIDUAL, SKIP
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from .base import Macro, Numbers, Part, Visit, at, kept
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DenseGroup", "GrowingLayers"]


class GrowingLayers(nn.Module):
    """`x + scale * fused`: layer i reads x and what the layers before it gave, a linear map takes its output to G channels,
    that of the last layer to D."""

    shares = True

    def __init__(self, layers: list[nn.Module], width: int, growth: int, scale: float):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.scale = scale
        self.fuse = nn.ModuleList([nn.Linear(width + i * growth, growth) for i in range(len(layers) - 1)])
        self.last = nn.Linear(width + (len(layers) - 1) * growth, width)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        group_BTE = x_BTD
        for i, layer in enumerate(self.layers):
            y_BTE = as_sequence(layer, group_BTE, True, shared)
            group_BTE = self.grown(i, group_BTE, y_BTE)
        return x_BTD + self.scale * group_BTE

    def grown(self, i: int, group_BTE: Tensor, y_BTE: Tensor) -> Tensor:
        """The group's channels with those of layer i; of the last layer its map back to D channels."""
        if i == len(self.fuse):
            return self.last(y_BTE)                                                  # type: ignore[no-any-return]
        return torch.cat([group_BTE, F.leaky_relu(self.fuse[i](y_BTE), 0.2)], dim=-1)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per layer."""
        group_BTE, after = x_BTD, []
        for i, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            y_BTE, new = step_part(layer, group_BTE, before, True, shared)
            group_BTE = self.grown(i, group_BTE, y_BTE)
            after.append(new)
        return x_BTD + self.scale * group_BTE, after


@dataclass(frozen=True)
class DenseGroup(Macro):
    """The residual dense group of DRCT (Hsu et al., 2024): layers at widths D, D + growth, D + 2 growth, ..., each on the
    concatenation of the group's input and of what the layers before gave, which a 1 by 1 convolution takes to `growth`
    channels; that of the last layer leads back to the width, and is added times `scale`.

    layers: blocks and macros that keep their width; heads must divide each of the widths, or have a head_dim.
    """

    layers: Any
    growth: Any = 32
    scale: Any = 0.2
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "a wider stream of a dense group begins with the narrower one"}
    proof: ClassVar[str] = "tests/space/test_residuals.py -k dense_group"
    source: ClassVar[Source] = Source("DRCT: Saving Image Super-resolution away from Information Bottleneck", 2024,
                                      systems=("S222",))

    def check(self, width: int, where: str) -> None:
        require_whole("growth", self.growth, where)
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise ValueError(f"scale is a number at {where}: got {self.scale!r}; use 0.2")

    def widths(self, width: int) -> list[int]:
        """The width that reaches every layer."""
        return [width + i * self.growth for i in range(len(kept(self.layers)))]

    def axes(self, width: int) -> dict[str, Param]:
        sizes = self.widths(width)
        if not sizes:
            return {}
        found: dict[str, Param] = {}
        for i, inner in enumerate(sizes[:-1]):
            grown = axis("growth", self.growth)
            found |= {f"fuse.{i}.weight": param(grown, axis("width", inner)), f"fuse.{i}.bias": param(grown, init="zeros")}
        d = axis("width", width)
        return found | {"last.weight": param(d, axis("width", sizes[-1])), "last.bias": param(d, init="zeros")}

    def parts(self, width: int, length: Length) -> list[Part]:
        return [Part(f"layers.{position}", entry.item, at("layers", self.layers, entry.index), inner, length)
                for position, (entry, inner) in enumerate(zip(kept(self.layers), self.widths(width), strict=True))]

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(self.matrix_numel(width) * tokens_of(length))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float(self.matrix_numel(width))

    def build(self, width: int) -> nn.Module:
        layers = [entry.item.build(inner) for entry, inner in zip(kept(self.layers), self.widths(width), strict=True)]
        return GrowingLayers(layers, width, self.growth, float(self.scale))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        history = [stream]
        for index, (entry, inner) in enumerate(zip(kept(self.layers), self.widths(width), strict=True)):
            draft.width = inner
            source = draft.node("concat", "merge", "", None, history[-1]) if index else stream
            for earlier in history[:-1]:
                draft.join(earlier, source, SKIP)
            y = draft.op(entry.item, f"{place}.layers.{index}", "mixer", source, inner)
            draft.width = width
            name = "last" if index == len(kept(self.layers)) - 1 else f"fuse.{index}"
            history.append(draft.node(self.label(), "merge", f"{place}.{name}", self, y))
        total = draft.node("sum", "sum", "", None, history[-1])
        draft.join(stream, total, RESIDUAL)
        return total

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        most = max((len(kept(held)) for held in numbers("layers")), default=0)
        visit("layers", frozenset(w + i * growth for w in widths for growth in numbers("growth") for i in range(most)))
        return widths
