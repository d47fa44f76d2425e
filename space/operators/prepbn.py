"""Layer normalisation that turns into batch normalisation while it trains.

Legend: N entries of the batch (all dimensions but the last), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["Affine", "ChannelAffine", "PRepBN", "ProgressiveNorm"]

PAPER = "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization"


class ProgressiveNorm(nn.Module):
    """`gamma LN(x) + (1 - gamma) (BN(x) + eta x)`, gamma falling from 1 to 0 with every training step.

    Statistics, in place: the running mean and variance, and `trained`, the number of training steps so far. For the first
    `warmup` of them the layer norm is alone; gamma is 1 then, and 0 after `steps` more. Evaluation takes gamma as it
    stands; the authors' code takes 0 there from the start, which is the same once the annealing is over.
    """

    def __init__(self, width: int, steps: int, warmup: int = 0, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.steps, self.warmup, self.momentum, self.eps = steps, warmup, momentum, eps
        self.layer_weight = nn.Parameter(torch.ones(width))
        self.layer_bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eta = nn.Parameter(torch.ones(1))
        self.running_mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(width), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma()
        if self.training:
            self.trained.detach().add_(1)
        x_ND = x.reshape(-1, x.shape[-1])
        batch_ND = F.batch_norm(x_ND, self.running_mean.detach(), self.running_var.detach(), self.weight, self.bias,
                                self.training, self.momentum, self.eps) + self.eta * x_ND
        layer_ND = F.layer_norm(x_ND, x_ND.shape[-1:], self.layer_weight, self.layer_bias, self.eps)
        return (gamma * layer_ND + (1 - gamma) * batch_ND).view(x.shape)

    def gamma(self) -> Tensor:
        """The share of the layer norm."""
        return (1 - (self.trained.detach() - self.warmup).clamp(min=0) / self.steps).clamp(min=0)


class ChannelAffine(nn.Module):
    """`weight * x + bias` per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


@dataclass(frozen=True)
class PRepBN(Operator):
    """Progressive re-parameterised batch normalisation (Guo et al., 2024).

    steps: of training, over which gamma falls from 1 to 0, after `warmup` steps at 1. In the end the norm is a scale and a
    shift per channel: `folded` makes a trained network one with `Affine` norms, and `folded_into` puts such a norm into
    the linear map after it. While training, a token's output depends on the whole batch, so it is not causal.
    """

    steps: Any = 300_000
    warmup: Any = 0
    momentum: float = 0.1
    eps: float = 1e-5
    kind: ClassVar[str] = "norm"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"one": "a number of its own"}
    source: ClassVar[Source] = Source(PAPER, 2024, options=("S204",))

    def check(self, width: int, where: str) -> None:
        require_whole("steps", self.steps, where)
        require_whole("warmup", self.warmup, where, low=0)
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1 at {where}: got {self.momentum!r}; use 0.1")

    def axes(self, width: int) -> dict[str, Param]:
        d, one = axis("width", width), axis("one", 1)
        gains = {name: param(d, share="own", init="ones") for name in ("layer_weight", "weight")}
        shifts = {name: param(d, share="own", init="zeros") for name in ("layer_bias", "bias")}
        return gains | shifts | {
            "eta": param(one, share="own", init="ones"),
            "running_mean": param(d, share="own", init="zeros", statistic=True),
            "running_var": param(d, share="own", init="ones", statistic=True),
            "trained": param(one, share="own", init="zeros", statistic=True)}

    def build(self, width: int) -> nn.Module:
        return ProgressiveNorm(width, self.steps, self.warmup, self.momentum, self.eps)


@dataclass(frozen=True)
class Affine(Operator):
    """A scale and a shift per channel in the place of a norm: what is left of `PRepBN` in the end, and the norm of ResMLP
    (Touvron et al., 2021)."""

    kind: ClassVar[str] = "norm"
    source: ClassVar[Source] = Source("ResMLP: Feedforward networks for image classification with data-efficient training",
                                      2021)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"weight": param(d, share="own", init="ones"), "bias": param(d, share="own", init="zeros")}

    def build(self, width: int) -> nn.Module:
        return ChannelAffine(width)
