"""A gated feed-forward layer with a norm inside, which stands in place of attention.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param, renamed
from ..operator import Operator, Source
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size

__all__ = ["Activator", "ActivatorUnit"]


class ActivatorUnit(nn.Module):
    """`out(norm(gelu(gate(x))) * norm(up(x)))`, each token alone; both norms are one."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.norm = LayerNormalisation(hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.out(self.norm(F.gelu(self.gate(x_BTD))) * self.norm(self.up(x_BTD)))
        return y_BTD


@dataclass(frozen=True)
class Activator(Operator):
    """Activator: GLU Activations as The Core Functions of a Vision Transformer (Abdullah and Aydin, 2024).

    ratio: hidden size over width, rounded up to a multiple of 8. As a block's mixer with an MLP after it, or alone. As in the
    authors' code no token sees another one; give the network a mixer elsewhere where they must.
    """

    ratio: Any = 4
    kind: ClassVar[str] = "channel"
    source: ClassVar[Source] = Source("Activator: GLU Activations as The Core Functions of a Vision Transformer", 2024,
                                      systems=("S227",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        norm = {f"norm.{name}": renamed(part, "width", f) for name, part in LayerNorm().axes(f.size).items()}
        return {"gate.weight": param(f, d), "gate.bias": param(f, init="zeros"), "up.weight": param(f, d),
                "up.bias": param(f, init="zeros"), "out.weight": param(d, f), "out.bias": param(d, init="zeros"), **norm}

    def build(self, width: int) -> nn.Module:
        return ActivatorUnit(width, hidden_size(self.ratio, width))
