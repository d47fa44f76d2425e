"""A time series whose variates are the tokens, and a forecast of them.

Legend: B batch, L steps seen, V variates, D width, S steps ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["ForecastHead", "Forecasts", "SeriesTokens", "VariateEmbedding"]

EPS = 1e-5


class SeriesTokens(nn.Module):
    """Each variate's whole series as one token; with `norm` it has mean 0 and standard deviation 1 before."""

    def __init__(self, steps: int, width: int, norm: bool):
        super().__init__()
        self.norm = norm
        self.projection = nn.Linear(steps, width)

    def forward(self, series_BLV: Tensor) -> Tensor:
        x_BVL = series_BLV.transpose(1, 2)
        if self.norm:
            x_BVL = x_BVL - x_BVL.mean(-1, keepdim=True)
            x_BVL = x_BVL * torch.rsqrt(x_BVL.square().mean(-1, keepdim=True) + EPS)
        x_BVD: Tensor = self.projection(x_BVL)
        return x_BVD


@dataclass(frozen=True)
class VariateEmbedding(Operator):
    """iTransformer: Inverted Transformers Are Effective for Time Series Forecasting (Liu et al., 2023): the look-back series
    of a variate is a token. series (B, steps, variates) to (B, variates, width).

    steps: of the look-back; a shorter one uses the weights of the newest. norm: each series minus its mean, over its
    standard deviation, which the forecast is put back by (`tasks.forecasting` does). Attention then mixes variates, of
    which there may be any number in any order, and the layers for channels model time. Marks of time are further variates.

        Space(embed=VariateEmbedding(steps=96), width=64, norm=LayerNorm(), head=ForecastHead(horizon=24), body=repeat(
            Block(mixer=Attention(bidirectional=True, rotary=False), channel=MLP(), norm=LayerNorm(), placement="post"), 2))
    """

    steps: Any = 96
    norm: Any = True
    kind: ClassVar[str] = "embedding"
    fixed: ClassVar[Mapping[str, str]] = {"steps": "a step of the series"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/operators/test_variate_embedding.py"
    source: ClassVar[Source] = Source("iTransformer: Inverted Transformers Are Effective for Time Series Forecasting", 2023,
                                      systems=("S258",))

    def check(self, width: int, where: str) -> None:
        require_whole("steps", self.steps, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        weight = param(d, axis("steps", self.steps, "trailing"))
        return {"projection.weight": weight, "projection.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return SeriesTokens(self.steps, width, bool(self.norm))

    def macs(self, width: int, length: int) -> float:
        """The projection of every token; `length` counts variates."""
        return float(length * self.steps * width)


class Forecasts(nn.Module):
    """The next steps of every variate from its token: [B, V, D] to [B, S, V]."""

    def __init__(self, width: int, horizon: int):
        super().__init__()
        self.projection = nn.Linear(width, horizon)

    def forward(self, x_BVD: Tensor) -> Tensor:
        y_BSV: Tensor = self.projection(x_BVD).transpose(1, 2).contiguous()
        return y_BSV


class NewestForecasts(nn.Module):
    """The next steps of all variates from the newest token: [B, T, D] to [B, S, V]."""

    def __init__(self, width: int, horizon: int, variates: int):
        super().__init__()
        self.horizon, self.variates = horizon, variates
        self.projection = nn.Linear(width, horizon * variates)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BE: Tensor = self.projection(x_BTD[:, -1])
        return y_BE.view(len(y_BE), self.horizon, self.variates)


@dataclass(frozen=True)
class ForecastHead(Operator):
    """A linear forecast of `horizon` steps, (B, horizon, variates): Are Transformers Effective for Time Series Forecasting?
    (Zeng et al., 2022) make all of them at once.

    variates: None where tokens are variates (`VariateEmbedding`), each of which gives its own steps; their number where
    tokens are steps (`FrameEmbedding`), of which the newest gives all.
    """

    horizon: Any = 24
    variates: Any = None
    kind: ClassVar[str] = "head"
    fixed: ClassVar[Mapping[str, str]] = {"horizon": "a step ahead", "variates": "a variate"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Are Transformers Effective for Time Series Forecasting?", 2022)

    def check(self, width: int, where: str) -> None:
        require_whole("horizon", self.horizon, where)
        if self.variates is not None:
            require_whole("variates", self.variates, where, instead="use None where every token is a variate")

    def axes(self, width: int) -> dict[str, Param]:
        steps = axis("horizon", self.horizon) * axis("variates", self.variates or 1)
        return {"projection.weight": param(steps, axis("width", width)), "projection.bias": param(steps, init="zeros")}

    def build(self, width: int) -> nn.Module:
        if self.variates is None:
            return Forecasts(width, self.horizon)
        return NewestForecasts(width, self.horizon, self.variates)

    def macs(self, width: int, length: int) -> float:
        """The steps of every token, or those of all variates from one."""
        return float(self.matrix_numel(width) * (length if self.variates is None else 1))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: there is no next token."""
        return self.macs(width, length)
