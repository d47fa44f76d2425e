"""The last layers of an image transformer, in which one class token reads the patches.

Legend: B batch, T tokens, D width, H heads, P head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_divisor, require_whole
from ..operators.layernorm import LayerNormalisation
from ..operators.mlp import FeedForward, check_ratio, hidden_size
from .base import Macro, Numbers, Part, Visit

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["ClassAttention", "ClassLayer", "ClassLayers"]


class ClassLayer(nn.Module):
    """The class token attends to itself and the patches, then its own feed-forward layer; both scaled per channel."""

    def __init__(self, width: int, heads: int, hidden: int, init: float):
        super().__init__()
        self.heads = heads
        self.norm, self.channel_norm = LayerNormalisation(width), LayerNormalisation(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.channel = FeedForward(width, hidden, "gelu")
        self.scale, self.channel_scale = nn.Parameter(torch.full((width,), init)), nn.Parameter(torch.full((width,), init))

    def forward(self, class_B1D: Tensor, patches_BTD: Tensor) -> Tensor:
        u_BSD = self.norm(torch.cat([class_B1D, patches_BTD], dim=1))
        q_BHP, k_BHSP, v_BHSP = (self.split(part) for part in (self.query(u_BSD[:, :1]), self.key(u_BSD), self.value(u_BSD)))
        y_B1D = F.scaled_dot_product_attention(q_BHP, k_BHSP, v_BHSP).transpose(1, 2).flatten(2)
        class_B1D = class_B1D + self.scale * self.out(y_B1D)
        y_B1D = self.channel(self.channel_norm(class_B1D))
        return class_B1D + self.channel_scale * y_B1D                                # type: ignore[no-any-return]

    def split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2)


class ClassLayers(nn.Module):
    """A learned class token through layers that leave the patches as they are; what leaves is that token alone."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, init: float):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList([ClassLayer(width, heads, hidden, init) for _ in range(depth)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        patches_BTD = x_BTD.flatten(1, -2)
        class_B1D = self.token.repeat(len(x_BTD), 1, 1)
        for layer in self.layers:
            class_B1D = layer(class_B1D, patches_BTD)
        return class_B1D


@dataclass(frozen=True)
class ClassAttention(Macro):
    """The class-attention stage of CaiT (Touvron et al., 2021): a class token joins after the layers of patches, alone asks
    them for `depth` layers, and goes on alone to the head.

    Stands last in a body, before a `ClassifierHead`; with `Block(join=LayerScale())` before it, it is CaiT. init: of its own
    LayerScale. Keys and values are those of the patches and the token itself.
    """

    depth: Any = 2
    heads: Any = 4
    ratio: Any = 4
    init: Any = 1e-5
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_residuals.py -k class_token"
    source: ClassVar[Source] = Source("Going deeper with Image Transformers", 2021, systems=("S175",))

    def check(self, width: int, where: str) -> None:
        require_whole("depth", self.depth, where)
        require_whole("heads", self.heads, where)
        require_divisor("heads", self.heads, "width", width, where)
        check_ratio(self.ratio, where)
        if isinstance(self.init, bool) or not isinstance(self.init, (int, float)) or not math.isfinite(self.init):
            raise ValueError(f"init is the number the scales start at, at {where}: got {self.init!r}; use 1e-5")

    def axes(self, width: int) -> dict[str, Param]:
        d, small = axis("width", width), Init("constant", low=float(self.init))
        inner = axis("heads", self.heads) * axis("head_dim", width // self.heads)
        found = {"token": param(d, share="own", init=Init("normal", gain=0.02))}
        for i in range(self.depth):
            hidden = axis("hidden", hidden_size(self.ratio, width))
            layer = {name: param(inner, d) for name in ("query.weight", "key.weight", "value.weight")}
            layer |= {"out.weight": param(d, inner), "channel.up.weight": param(hidden, d),
                      "channel.down.weight": param(d, hidden)}
            for norm in ("norm", "channel_norm"):
                layer |= {f"{norm}.weight": param(d, share="own", init="ones"),
                          f"{norm}.bias": param(d, share="own", init="zeros")}
            layer |= {name: param(d, share="own", init=small) for name in ("scale", "channel_scale")}
            found |= {f"layers.{i}.{name}": declared for name, declared in layer.items()}
        return found

    def parts(self, width: int, length: Length) -> list[Part]:
        return []

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return width, 1

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Keys and values of all tokens; queries, scores, outputs and the feed-forward layer of one."""
        seen, hidden = tokens_of(length) + 1, hidden_size(self.ratio, width)
        one = 2 * width * width * (seen + 1) + 2 * width * seen + 2 * width * hidden
        return float(self.depth * one)

    def build(self, width: int) -> nn.Module:
        return ClassLayers(width, self.depth, self.heads, hidden_size(self.ratio, width), float(self.init))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        return draft.node(self.label(), "class attention", place, self, stream)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        return widths
