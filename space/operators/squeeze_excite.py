"""Squeeze and excitation: channels weighed by what the whole grid holds. The one module of it here.

Legend: B batch, T tokens of a sequence or a grid, D channels, S squeezed channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Axis, Dim, Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_whole

__all__ = ["ChannelWeights", "SqueezeExcite", "squeeze_axes"]

ACTIVATIONS, GATES = ("relu", "silu", "gelu"), ("sigmoid", "hard")


class ChannelWeights(nn.Module):
    """`x * gate(restore(activation(squeeze(mean of x))))`; a "hard" gate is `relu6(x + 3) / 6`."""

    def __init__(self, channels: int, squeezed: int, activation: str, gate: str):
        super().__init__()
        self.activation, self.gate = activation, gate
        self.squeeze = nn.Linear(channels, squeezed)
        self.restore = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        s_BS = self.squeeze(x_BTD.mean(1))
        if self.activation == "relu":
            s_BS = F.relu(s_BS)
        elif self.activation == "silu":
            s_BS = F.silu(s_BS)
        else:
            s_BS = F.gelu(s_BS)
        weight_BD = self.restore(s_BS)
        weight_BD = F.relu6(weight_BD + 3) / 6 if self.gate == "hard" else torch.sigmoid(weight_BD)
        return (x_BTD * weight_BD[:, None]).view(x.shape)


def squeeze_axes(place: str, channels: Axis | Dim, squeezed: int) -> dict[str, Param]:
    """The parameters of `ChannelWeights` under `place`."""
    s = axis("squeezed", squeezed)
    return {f"{place}squeeze.weight": param(s, channels), f"{place}squeeze.bias": param(s, init="zeros"),
            f"{place}restore.weight": param(channels, s), f"{place}restore.bias": param(channels, init="zeros")}


@dataclass(frozen=True)
class SqueezeExcite(Operator):
    """Squeeze-and-Excitation Networks (Hu et al., 2017), as an operator of its own.

    reduction: the width over that in the middle. activation: "relu", "silu" or "gelu". gate: "sigmoid" or "hard", the
    piecewise linear one of MobileNetV3 (Howard et al., 2019).
    """

    reduction: Any = 16
    activation: Any = "relu"
    gate: Any = "sigmoid"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Squeeze-and-Excitation Networks", 2017)

    def check(self, width: int, where: str) -> None:
        require_whole("reduction", self.reduction, where)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")
        if self.gate not in GATES:
            raise ValueError(f"{unknown('gate', self.gate, GATES)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        return squeeze_axes("", axis("width", width), max(width // self.reduction, 1))

    def build(self, width: int) -> nn.Module:
        return ChannelWeights(width, max(width // self.reduction, 1), self.activation, self.gate)

    def macs(self, width: int, length: Length) -> float:
        """Both matrices, once for all tokens."""
        return float(self.matrix_numel(width))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
