"""Two matrices, each with a norm of its own behind it.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param, renamed
from ..operator import Operator, Source
from .batchnorm import BatchNorm, BatchNormalisation
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size

__all__ = ["NormedFeedForward", "NormedMLP"]

ACTIVATIONS, NORMS = ("relu", "gelu", "silu"), ("batch", "layer")


class NormedFeedForward(nn.Module):
    """`last(down_norm(down(activation(up_norm(up(x))))))`, `last` a ReLU or nothing."""

    def __init__(self, width: int, hidden: int, activation: str, last: bool, batch: bool):
        super().__init__()
        self.activation, self.last = activation, last
        self.up = nn.Linear(width, hidden, bias=False)
        self.up_norm: Any = BatchNormalisation(hidden) if batch else LayerNormalisation(hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.down_norm: Any = BatchNormalisation(width) if batch else LayerNormalisation(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up_norm(self.up(x_BTD))
        if self.activation == "relu":
            h_BTF = F.relu(h_BTF)
        elif self.activation == "gelu":
            h_BTF = F.gelu(h_BTF)
        else:
            h_BTF = F.silu(h_BTF)
        y_BTD: Tensor = self.down_norm(self.down(h_BTF))
        return F.relu(y_BTD) if self.last else y_BTD


@dataclass(frozen=True)
class NormedMLP(Operator):
    """The feed-forward layer of LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference (Graham et al., 2021):
    a batch norm behind each matrix, which inference folds into it; the block has no norm of its own (`norm=NoNorm()`).

    ratio: hidden size over width, rounded up to a multiple of 8. activation: "relu", "gelu" or "silu" in between; last: a
    ReLU on what leaves as well. norm: "batch", or "layer" for a network that decodes token by token while its norms learn:
    a batch norm looks at the whole batch then, so it is not causal.
    """

    ratio: Any = 2
    activation: Any = "relu"
    last: Any = False
    norm: Any = "batch"
    kind: ClassVar[str] = "channel"
    source: ClassVar[Source] = Source("LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", 2021)

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return bool(self.norm == "layer")

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return self.causal

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        for name, value, known in (("activation", self.activation, ACTIVATIONS), ("norm", self.norm, NORMS)):
            if value not in known:
                raise ValueError(f"{unknown(name, value, known)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        norm: Operator = BatchNorm() if self.norm == "batch" else LayerNorm()
        return {"up.weight": param(f, d), "down.weight": param(d, f),
                **{f"up_norm.{name}": renamed(part, "width", f) for name, part in norm.axes(width).items()},
                **{f"down_norm.{name}": part for name, part in norm.axes(width).items()}}

    def build(self, width: int) -> nn.Module:
        return NormedFeedForward(width, hidden_size(self.ratio, width), self.activation, bool(self.last),
                                 self.norm == "batch")
