"""Scores of classes from one vector that stands for all tokens, made in one of several ways.

Legend: B batch, T tokens, D width, K classes, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source, tokens_of
from .checks import require_divisor, require_positive, require_whole
from .spiking import SpikingNorm, spiking_norm_axes

__all__ = ["AttentionPooledScores", "PooledHead", "PooledScores", "PowerPooledScores", "SpikingPooledScores", "power_mean"]

POOLS = ("mean", "max", "class", "attention", "power")


class PooledScores(nn.Module):
    """Scores of the mean or the maximum over tokens, or of the first token: [B, T, D] or [B, H, W, D] to [B, K]."""

    def __init__(self, width: int, classes: int, pool: str):
        super().__init__()
        self.pool = pool
        self.scores = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.flatten(1, -2)
        scores_BK: Tensor = self.scores(self.pooled(x_BTD))
        return scores_BK

    def pooled(self, x_BTD: Tensor) -> Tensor:
        if self.pool == "mean":
            return x_BTD.mean(dim=1)
        return x_BTD.amax(dim=1) if self.pool == "max" else x_BTD[:, 0]


class SpikingPooledScores(PooledScores):
    """Scores of how often each channel's neuron fires: the mean of the spikes of a batch norm over tokens."""

    def __init__(self, width: int, classes: int):
        super().__init__(width, classes, "mean")
        self.spikes = SpikingNorm(width, "batch")

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BK: Tensor = self.scores(self.pooled(self.spikes(x_BTD.flatten(1, -2))))
        return scores_BK


class AttentionPooledScores(nn.Module):
    """Scores of the sum of all tokens, weighed by a softmax over the tokens of one number each."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.weigh = nn.Linear(width, 1, bias=False)
        self.scores = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.flatten(1, -2)
        scores_BK: Tensor = self.scores((self.weigh(x_BTD).softmax(dim=1) * x_BTD).sum(dim=1))
        return scores_BK


class PowerPooledScores(nn.Module):
    """Scores of the power mean over tokens, groups of channels that follow one another having a power each."""

    def __init__(self, width: int, classes: int, groups: int, eps: float):
        super().__init__()
        self.eps = eps
        self.power = nn.Parameter(torch.empty(groups))
        self.scores = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.flatten(1, -2)
        power_D = self.power.repeat_interleave(x_BTD.shape[-1] // len(self.power))
        scores_BK: Tensor = self.scores(power_mean(x_BTD, power_D, self.eps))
        return scores_BK


def power_mean(x_BTD: Tensor, power_D: Tensor, eps: float) -> Tensor:
    """`(mean over t of max(x, eps)^p)^(1 / p)` per channel; by logarithms, so that no power leaves the range of floats."""
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    log_BTD = x_BTD.to(wide).clamp(min=eps).log()
    power_D = power_D.to(wide)
    count = torch.full_like(power_D, x_BTD.shape[1])
    return (((power_D * log_BTD).logsumexp(dim=1) - count.log()) / power_D).exp().to(x_BTD.dtype)


@dataclass(frozen=True)
class PooledHead(Operator):
    """Scores of `classes` from all tokens pooled to one vector.

    pool: "mean", "max" or "class", the first token, where the embedding puts one (`PatchEmbedding(class_token=True)`, ViT,
    Dosovitskiy et al., 2020); "attention", sequence pooling (CCT, Hassani et al., 2021), a softmax over tokens of a learned
    number each, whose bias would change nothing and is left out; "power", the generalised mean (GeM, Radenovic et al., 2018),
    with a learned power per group of channels (GGeM, Ko et al., 2022). groups: of "power", as many as attention has heads in
    that paper; 1 is GeM. power: where the powers start; 1 is the mean, a large one the maximum, of what is above eps.
    spiking: of "mean", integrate-and-fire neurons behind a batch norm ahead of it (Spiking LMUFormer, Liu et al., 2024).
    """

    classes: Any
    pool: Any = "mean"
    groups: Any = 1
    power: Any = 3.0
    eps: float = 1e-6
    spiking: Any = False
    kind: ClassVar[str] = "head"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/operators/test_images.py -k power"
    source: ClassVar[Source] = Source("Group Generalized Mean Pooling for Vision Transformer", 2022, systems=("S029",),
                                      options=("S416",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """A row is a class; with groups a channel belongs to one."""
        grouped = {"width": "channels of a group follow one another", "groups": "a group is a run of channels"}
        return {"classes": "a row is a class"} | (grouped if self.pool == "power" and self.groups > 1 else {})

    def check(self, width: int, where: str) -> None:
        require_whole("classes", self.classes, where, low=2)
        if self.pool not in POOLS:
            raise ValueError(f"{unknown('pool', self.pool, POOLS)} (at {where})")
        require_whole("groups", self.groups, where)
        if self.pool != "power" and self.groups > 1:
            raise ValueError(f"groups are of pool='power' at {where}: got {self.groups} with pool={self.pool!r}; use 1")
        require_divisor("groups", self.groups, "width", width, where)
        require_positive("power", self.power, where)
        require_positive("eps", self.eps, where)
        if self.spiking and self.pool != "mean":
            raise ValueError(f"spikes are counted by pool='mean' at {where}: got {self.pool!r} with spiking=True")

    def axes(self, width: int) -> dict[str, Param]:
        d, k = axis("width", width), axis("classes", self.classes)
        found = {"scores.weight": param(k, d), "scores.bias": param(k, init="zeros")}
        if self.pool == "attention":
            found["weigh.weight"] = param(axis("weight", 1), d)
        elif self.pool == "power":
            found["power"] = param(axis("groups", self.groups), share="own", init=Init("constant", low=float(self.power)))
        return found | spiking_norm_axes("spikes", d, "batch") if self.spiking else found

    def build(self, width: int) -> nn.Module:
        if self.pool == "attention":
            return AttentionPooledScores(width, self.classes)
        if self.pool == "power":
            return PowerPooledScores(width, self.classes, self.groups, self.eps)
        return SpikingPooledScores(width, self.classes) if self.spiking else PooledScores(width, self.classes, self.pool)

    def macs(self, width: int, length: int) -> float:
        """The scores once per sequence; of "attention" a number per token, too. Weighed sums are no products of matrices."""
        return float(width * self.classes + (width * tokens_of(length) if self.pool == "attention" else 0))
