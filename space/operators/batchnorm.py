"""Batch normalisation with its statistics as parameters that are measured instead of trained.

Legend: N entries of the batch (all dimensions but the last), D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, axis, param, renamed
from ..operator import Operator, Source

__all__ = ["BatchNorm", "BatchNormalisation", "ChannelShift", "batch_norm_axes"]


class BatchNormalisation(nn.Module):
    """Mean 0 and variance 1 of each channel over the batch, then a gain and a shift.

    In training mode the batch's own mean and variance, which also move `running_mean` and `running_var` by `momentum`;
    in evaluation mode the running ones. Channels come last: (B, T, D) and (B, H, W, D) alike. Statistics are updated
    in place in the tensors the module is called with, so a supernet's own change under `functional_call`.
    """

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        y_ND = F.batch_norm(x_ND, self.running_mean.detach(), self.running_var.detach(), self.weight, self.bias,
                            self.training, self.momentum, self.eps)
        return y_ND.view(x.shape)


class ChannelShift(nn.Module):
    """`x + bias` per channel: what is left of a batch norm whose scale is in the weights before it."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


@dataclass(frozen=True)
class BatchNorm(Operator):
    """Batch Normalization (Ioffe and Szegedy, 2015). Each place and width has its own gain, shift and statistics.

    momentum: the share of the new batch in the running statistics. While training, a token's output depends on the
    whole batch and later tokens, so it is not causal. In a trained network it is a scale and a shift: `folded` makes it
    `Affine`, and puts those inside operators into the weights before them.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    kind: ClassVar[str] = "norm"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Batch Normalization: Accelerating Deep Network Training by Reducing Internal "
                                      "Covariate Shift", 2015)

    def check(self, width: int, where: str) -> None:
        if not 0 < self.momentum <= 1 or not math.isfinite(self.momentum):
            raise ValueError(f"momentum must be above 0 and at most 1 at {where}: got {self.momentum!r}; use 0.1")

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"weight": param(d, share="own", init="ones"), "bias": param(d, share="own", init="zeros"),
                "running_mean": param(d, share="own", init="zeros", statistic=True),
                "running_var": param(d, share="own", init="ones", statistic=True)}

    def build(self, width: int) -> nn.Module:
        return BatchNormalisation(width, self.momentum, self.eps)


def batch_norm_axes(place: str, channels: Axis | Dim, folded: Any = False) -> dict[str, Param]:
    """The parameters of a `BatchNormalisation` of these channels, called `place`; of a `ChannelShift` where it is folded."""
    return {f"{place}.{name}": renamed(part, "width", channels) for name, part in BatchNorm().axes(1).items()
            if name == "bias" or not folded}
