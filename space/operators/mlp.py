"""Two-layer channel mixing.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Axis, Param, axis, param
from ..operator import Operator, Source
from .layernorm import LayerNormalisation

__all__ = ["MLP", "FeedForward", "check_ratio", "hidden_size", "sub_norm_axes"]

ACTIVATIONS = ("gelu", "silu", "squared_relu", "relu", "abs")
MULTIPLE = 8


def hidden_size(ratio: float, width: int) -> int:
    """`ratio * width`, rounded up to a multiple of 8 so that rows stay aligned."""
    return MULTIPLE * math.ceil(round(ratio * width / MULTIPLE, 6))


def check_ratio(ratio: Any, where: str) -> None:
    """Raise ValueError unless `ratio` is a positive number."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
        raise ValueError(f"ratio must be a positive number at {where}: got {ratio!r}; it is hidden size over width, "
                         "such as 4; use Identity() for no channel mixer")


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, each token alone."""

    def __init__(self, width: int, hidden: int, activation: str, sub_norm: bool = False):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, hidden, bias=False)
        self.sub_norm = LayerNormalisation(hidden) if sub_norm else None
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        if self.activation == "squared_relu":
            h_BTF = F.relu(h_BTF).square()
        elif self.activation == "relu":
            h_BTF = F.relu(h_BTF)
        elif self.activation == "gelu":
            h_BTF = F.gelu(h_BTF)
        elif self.activation == "abs":
            h_BTF = h_BTF.abs()
        else:
            h_BTF = F.silu(h_BTF)
        if self.sub_norm is not None:
            h_BTF = self.sub_norm(h_BTF)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD


@dataclass(frozen=True)
class MLP(Operator):
    """Feed-forward sublayer (Vaswani et al., 2017). hidden = ratio * width, rounded up to a multiple of 8.

    activation: "gelu", "silu", "relu", "squared_relu", the edit that Primer's search found (So et al., 2021), or "abs", which
    makes features the most diverse in depth (Tensor Programs VI, Yang et al., 2023). sub_norm: a layer norm before the last
    matrix (Foundation Transformers, Wang et al., 2022).
    """

    ratio: Any = 4
    activation: Any = "gelu"
    sub_norm: Any = False
    kind: ClassVar[str] = "channel"
    source: ClassVar[Source] = Source("Primer: Searching for Efficient Transformers for Language Modeling", 2021,
                                      options=("S239", "S196", "S131"))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        return {"up.weight": param(f, d), "down.weight": param(d, f), **sub_norm_axes(f, self.sub_norm)}

    def build(self, width: int) -> nn.Module:
        return FeedForward(width, hidden_size(self.ratio, width), self.activation, bool(self.sub_norm))


def sub_norm_axes(hidden: Axis, sub_norm: bool) -> dict[str, Param]:
    """Gain and shift of a layer norm of the hidden units, where there is one."""
    return {"sub_norm.weight": param(hidden, share="own", init="ones"),
            "sub_norm.bias": param(hidden, share="own", init="zeros")} if sub_norm else {}
