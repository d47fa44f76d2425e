"""Layer normalisation whose gain and shift move between two ends as a condition says.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .ada_norm import condition_of

__all__ = ["TimeDependentLayerNorm", "TimeDependentNorm"]


class TimeDependentLayerNorm(nn.Module):
    """`norm(x) * (s g1 + (1 - s) g2) + s b1 + (1 - s) b2` with `s = sigmoid(w . c + b)`."""

    shares = True

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.position = nn.Linear(width, 1)
        self.gain = nn.Parameter(torch.ones(2, width))
        self.shift = nn.Parameter(torch.zeros(2, width))

    def forward(self, x_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        s_B11 = torch.sigmoid(self.position(condition_of(shared, x_BTD)))
        gain_B1D = s_B11 * self.gain[0] + (1 - s_B11) * self.gain[1]
        shift_B1D = s_B11 * self.shift[0] + (1 - s_B11) * self.shift[1]
        return F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=self.eps) * gain_B1D + shift_B1D


@dataclass(frozen=True)
class TimeDependentNorm(Operator):
    """TD-LN of Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models (Liu et al., 2024).

    The paper's s is the sigmoid of w t + b for a scalar time t. A stream here carries its condition as a vector, so w is one
    too; with a condition that holds t in one entry this is the paper's formula. It stands in `Conditioned(layers)`. It has
    5 D numbers where `AdaNorm` has 2 D * D.
    """

    eps: float = 1e-6
    kind: ClassVar[str] = "norm"
    reads_shared: ClassVar[bool] = True
    reads_condition: ClassVar[bool] = True
    fixed: ClassVar[dict[str, str]] = {"ends": "the two ends of the condition", "position": "one position"}
    source: ClassVar[Source] = Source("Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models",
                                      2024, options=("S360",))

    def axes(self, width: int) -> dict[str, Param]:
        d, ends, one = axis("width", width), axis("ends", 2), axis("position", 1)
        return {"position.weight": param(one, d), "position.bias": param(one, init="zeros", share="own"),
                "gain": param(ends, d, share="own", init="ones"), "shift": param(ends, d, share="own", init="zeros")}

    def build(self, width: int) -> nn.Module:
        return TimeDependentLayerNorm(width, self.eps)

    def macs(self, width: int, length: int) -> float:
        """Once per sequence."""
        return float(width)
