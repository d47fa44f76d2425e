"""Layer normalisation and a residual gate that a condition sets.

The condition stands under "condition" in what layers share: [B, 1, D], one vector per sequence, or [B, T, D], one per token.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source

__all__ = ["AdaGate", "AdaNorm", "ConditionedGate", "ConditionedNorm", "condition_of"]

DIT = "Scalable Diffusion Models with Transformers"


def condition_of(shared: dict[str, Any], like: Tensor) -> Tensor:
    """The condition, with a dimension more where the stream is a grid. Raises ValueError where no layer gave one."""
    if "condition" not in shared:
        raise ValueError("a conditioned norm or gate reads a condition that layers around it hand on: got none; put its "
                         "blocks into Conditioned(layers)")
    condition_BTD: Tensor = shared["condition"]
    return condition_BTD.unsqueeze(1) if like.ndim == 4 else condition_BTD


class ConditionedNorm(nn.Module):
    """`norm(x) * (1 + scale(c)) + shift(c)`, the two from one linear map of silu(c)."""

    shares = True

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.modulate = nn.Linear(width, 2 * width)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        shift_B1D, scale_B1D = self.modulate(F.silu(condition_of(shared, x_BTD))).chunk(2, dim=-1)
        y_BTD: Tensor = F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=self.eps) * (1 + scale_B1D) + shift_B1D
        return y_BTD


class ConditionedGate(nn.Module):
    """`x + gate(c) * y`."""

    shares = True

    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, y_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        gate_B1D: Tensor = self.gate(F.silu(condition_of(shared, x_BTD)))
        return x_BTD + gate_B1D * y_BTD


@dataclass(frozen=True)
class AdaNorm(Operator):
    """Adaptive layer normalisation of DiT (Peebles and Xie, 2022): shift and scale come from a condition.

    Both start at zero, so it starts as a layer norm without gain and bias. With `AdaGate` as the block's join it is
    adaLN-Zero. `Block(norm=AdaNorm(), join=AdaGate())` stands in `Conditioned(layers)`, which makes the condition.
    """

    eps: float = 1e-6
    kind: ClassVar[str] = "norm"
    reads_shared: ClassVar[bool] = True
    reads_condition: ClassVar[bool] = True
    source: ClassVar[Source] = Source(DIT, 2022, options=("S046",))

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"modulate.weight": param(d + d, d, init="zeros"), "modulate.bias": param(d + d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return ConditionedNorm(width, self.eps)

    def matrix_numel(self, width: int) -> int:
        return 2 * width * width

    def macs(self, width: int, length: int) -> float:
        """Once per sequence."""
        return float(self.matrix_numel(width))


@dataclass(frozen=True)
class AdaGate(Operator):
    """The gate of adaLN-Zero (Peebles and Xie, 2022): it starts at zero, so that a block starts as the identity."""

    kind: ClassVar[str] = "join"
    reads_shared: ClassVar[bool] = True
    reads_condition: ClassVar[bool] = True
    source: ClassVar[Source] = Source(DIT, 2022, options=("S046",))

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"gate.weight": param(d, d, init="zeros"), "gate.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return ConditionedGate(width)

    def matrix_numel(self, width: int) -> int:
        return width * width

    def macs(self, width: int, length: int) -> float:
        """Once per sequence."""
        return float(self.matrix_numel(width))
