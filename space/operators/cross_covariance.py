"""Cross-covariance attention: channels attend to channels by their cosines over all tokens.

Legend: B batch, T tokens, D width, K heads, P channels of a head (head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .windows import check_heads, head_size, projections

__all__ = ["CrossCovariance", "CrossCovarianceAttention", "attending_channels"]


def attending_channels(q_BKPT: Tensor, k_BKPT: Tensor, v_BKPT: Tensor, temperature_K: Tensor, weights: str) -> Tensor:
    """`weights(temperature * cos(q, k)) v` of channels over all tokens, [B, T, K * P]; "softmax" or "relu" weights."""
    scores_BKPP = F.normalize(q_BKPT, dim=-1) @ F.normalize(k_BKPT, dim=-1).transpose(-1, -2)
    scores_BKPP = scores_BKPP * temperature_K[:, None, None]
    weights_BKPP = F.relu(scores_BKPP) if weights == "relu" else scores_BKPP.softmax(-1)
    return (weights_BKPP @ v_BKPT).flatten(1, 2).transpose(1, 2)


class CrossCovariance(nn.Module):
    """`softmax(temperature * q k^T) v` per head, with q, k, v [P, T] and rows of q and k at length 1."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.temperature = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BKPT, k_BKPT, v_BKPT = (project(x_BTD).transpose(1, 2).unflatten(1, (self.heads, -1))
                                  for project in (self.query, self.key, self.value))
        y_BTD: Tensor = self.out(attending_channels(q_BKPT, k_BKPT, v_BKPT, self.temperature, "softmax"))
        return y_BTD


@dataclass(frozen=True)
class CrossCovarianceAttention(Operator):
    """XCiT: Cross-Covariance Image Transformers (El-Nouby et al., 2021); the attention of EdgeNeXt (Maaz et al., 2022).

    heads: of channels that attend to each other. head_dim defaults to width / heads. Linear in tokens; shares its arithmetic
    with `TransposedAttention`, whose queries, keys and values are filtered as well.
    """

    heads: Any = 8
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("XCiT: Cross-Covariance Image Transformers", 2021, options=("S102",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)

    def axes(self, width: int) -> dict[str, Param]:
        return {**projections(width, self.heads, head_size(self, width)),
                "temperature": param(axis("heads", self.heads), share="own", init="ones")}

    def build(self, width: int) -> nn.Module:
        return CrossCovariance(width, self.heads, head_size(self, width))

    def macs(self, width: int, length: int) -> float:
        """Matrices of all tokens, and two products of all pairs of channels of a head."""
        head_dim = head_size(self, width)
        return float(length * (self.matrix_numel(width) + 2 * self.heads * head_dim**2))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
