"""Gated channel mixing with SiLU.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .layernorm import LayerNormalisation
from .mlp import check_ratio, hidden_size, sub_norm_axes

__all__ = ["GatedFeedForward", "SwiGLU"]


class GatedFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`, each token alone."""

    def __init__(self, width: int, hidden: int, sub_norm: bool = False):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.sub_norm = LayerNormalisation(hidden) if sub_norm else None
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        if self.sub_norm is not None:
            h_BTF = self.sub_norm(h_BTF)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD


class BilinearFeedForward(GatedFeedForward):
    """`down(gate(x) * up(x))`: the gate without an activation."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.gate(x_BTD) * self.up(x_BTD)
        if self.sub_norm is not None:
            h_BTF = self.sub_norm(h_BTF)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD


@dataclass(frozen=True)
class SwiGLU(Operator):
    """GLU Variants Improve Transformer (Shazeer, 2020). hidden = ratio * width, rounded up to a multiple of 8.

    At equal ratio it holds half as many parameters again as `MLP`; ratio 8/3 equals `MLP(4)`.
    activation: of the gate, "silu", or None for the bilinear unit, which TransNormerLLM calls SGLU (Qin et al., 2023).
    sub_norm: a layer norm before the last matrix (Foundation Transformers, Wang et al., 2022).
    """

    ratio: Any = 3
    activation: Any = "silu"
    sub_norm: Any = False
    kind: ClassVar[str] = "channel"
    source: ClassVar[Source] = Source("GLU Variants Improve Transformer", 2020)

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        if self.activation not in ("silu", None):
            raise ValueError(f"activation must be 'silu' or None at {where}: got {self.activation!r}; use None for no "
                             "activation")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        return {"gate.weight": param(f, d), "up.weight": param(f, d), "down.weight": param(d, f),
                **sub_norm_axes(f, self.sub_norm)}

    def build(self, width: int) -> nn.Module:
        kind = GatedFeedForward if self.activation else BilinearFeedForward
        return kind(width, hidden_size(self.ratio, width), bool(self.sub_norm))
