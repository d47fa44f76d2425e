"""Layers that only those tokens go through which an interpreter finds informative: how many, the input decides.

Legend: B batch, N tokens, F free tokens (all but the protected first), D width, H heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import SKIP
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_divisor, require_whole
from ..operators.spatial import shaped_like
from .base import Macro, Part, kept
from .looped import stream_parts
from .routing import count_of
from .running import as_sequence
from .transforms import rows_of

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DroppingLayers", "DynamicDrop", "Interpreter"]


class Interpreter(nn.Module):
    """How informative tokens are: the mean over heads of sigmoid(query_h(x) . key_h(policy)), with a learned policy token.

    Query and key maps meet in one vector per head, so that a token costs one product with each.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.policy = nn.Parameter(torch.zeros(1, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        k_H1P = self.key(self.policy).view(self.heads, 1, -1)
        ask_HD = (k_H1P @ self.query.weight.view(self.heads, k_H1P.shape[-1], -1))[:, 0]
        offset_H = (k_H1P[:, 0] * self.query.bias.view(self.heads, -1)).sum(-1)
        return torch.sigmoid(x_BND @ ask_HD.t() + offset_H).mean(-1)


class DroppingLayers(nn.Module):
    """Layers on the tokens that stay; those that were dropped come back behind them as they were.

    The matrix is one-hot, with as many rows as this sequence keeps, so every sequence is worked on alone.
    """

    def __init__(self, layers: list[nn.Module], width: int, heads: int, protected: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.interpreter, self.protected = Interpreter(width, heads), protected

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return torch.cat([self(row) for row in torch.split(x, 1)])
        x_BND = x.flatten(1, -2)
        keep_BF = self.decided(self.interpreter(x_BND[:, self.protected:]))
        place_N = torch.arange(x_BND.shape[1], device=x.device)
        keep_BN = torch.cat([keep_BF.new_ones(1, len(place_N) - keep_BF.shape[1]), keep_BF], 1)
        way = rows_of(torch.where(keep_BN, place_N, -1), torch.ones_like(x_BND[..., 0]), int(keep_BN.sum()))
        y = shaped_like(x, way.apply(x_BND)[:, :, None])
        for layer in self.layers:
            y = as_sequence(layer, y, True)
        return way.restored(y.flatten(1, -2), x_BND).view(x.shape)

    def decided(self, informative_BF: Tensor) -> Tensor:
        """Which free tokens stay: those that are informative rather than not."""
        return informative_BF > 0.5


@dataclass(frozen=True)
class DynamicDrop(Macro):
    """IA-RED^2 (Pan et al., 2021): a multi-head interpreter drops uninformative tokens before a group of layers.

    layers: of the group, and of all groups behind it: those that are dropped here are dropped there, so a later group is a
    `DynamicDrop` last among these layers. heads: of the interpreter. protected: so many tokens at the beginning, such as a
    class token, always stay. share: of the free tokens that is expected to stay, for costs; `bp.measured_macs` counts what
    ran.

    A dropped token comes back, as it was, behind the outermost group; the class token of
    `body=(ClassToken(), ..., DynamicDrop(...), Reduce(FirstTokens()))` never sees it. Training is by `bp.interpreter_loss`,
    the cross-entropy with REINFORCE, one group after the other. The number of tokens is each sequence's own, so sequences
    run one by one; tokens see each other, so it does not stream. Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    heads: Any = 4
    protected: Any = 1
    share: Any = 0.7
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_dynamic_drop.py"
    source: ClassVar[Source] = Source("IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers", 2021,
                                      systems=("S277",))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_divisor("heads", self.heads, "width", width, where)
        require_whole("protected", self.protected, where, instead="at least one token has to go on: put ClassToken() before")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is a share of the tokens above 0 and up to 1 at {where}: got {self.share}")

    def axes(self, width: int) -> dict[str, Param]:
        d, inner = axis("width", width), axis("heads", self.heads) * axis("head_dim", width // self.heads)
        maps = {f"interpreter.{name}.{part}": declared for name in ("query", "key")
                for part, declared in (("weight", param(inner, d)), ("bias", param(inner, init="zeros")))}
        return {**maps, "interpreter.policy": param(axis("policy", 1), d, init=Init("normal", gain=1.0))}

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """The policy token's key, the vector of every head, and its product with every free token."""
        free = max(tokens_of(length) - self.protected, 0)
        return float(2 * width**2 + free * width * self.heads)

    def parts(self, width: int, length: Length) -> list[Part]:
        tokens = tokens_of(length)
        first = min(self.protected, tokens)
        left = first + (count_of(self.share, tokens - first) if tokens > first else 0)
        return stream_parts(self.layers, "layers", width, left if isinstance(length, int) else (left, 1))

    def build(self, width: int) -> nn.Module:
        return DroppingLayers(built_layers([entry.item for entry in kept(self.layers)], width), width, self.heads,
                              self.protected)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "drop", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.layers", width)
        back = draft.node("restore", "drop", "", None, end)
        draft.join(stream, back, SKIP)
        return back
