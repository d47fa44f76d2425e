"""A two-layer channel mixer whose matrices are products of two thin ones.

Legend: B batch, T tokens, D width, F hidden, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .mlp import ACTIVATIONS, check_ratio, hidden_size

__all__ = ["LowRankFeedForward", "LowRankMLP"]


class LowRankFeedForward(nn.Module):
    """`down(activation(up(x)))`, each token alone; up and down each pass through `rank` numbers."""

    def __init__(self, width: int, hidden: int, rank: int, activation: str):
        super().__init__()
        self.activation = activation
        self.up_in = nn.Linear(width, rank, bias=False)
        self.up_out = nn.Linear(rank, hidden, bias=False)
        self.down_in = nn.Linear(hidden, rank, bias=False)
        self.down_out = nn.Linear(rank, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up_out(self.up_in(x_BTD))
        if self.activation == "squared_relu":
            h_BTF = F.relu(h_BTF).square()
        elif self.activation == "gelu":
            h_BTF = F.gelu(h_BTF)
        else:
            h_BTF = F.silu(h_BTF)
        y_BTD: Tensor = self.down_out(self.down_in(h_BTF))
        return y_BTD


@dataclass(frozen=True)
class LowRankMLP(Operator):
    """Low-Rank Transformer (Winata et al., 2020): a feed-forward layer in which each matrix is a product of two.

    ratio: hidden size over width, rounded up to a multiple of 8. rank: inner size of both products; it saves parameters
    below width * hidden / (width + hidden). activation: as of `MLP`.
    """

    ratio: Any = 4
    rank: Any = 16
    activation: Any = "gelu"
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Lightweight and Efficient End-to-End Speech Recognition Using Low-Rank "
                                      "Transformer", 2020)

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        require_whole("rank", self.rank, where, instead="use MLP for full matrices")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        up, down = axis("up_rank", self.rank), axis("down_rank", self.rank)
        return {"up_in.weight": param(up, d), "up_out.weight": param(f, up),
                "down_in.weight": param(down, f), "down_out.weight": param(d, down)}

    def build(self, width: int) -> nn.Module:
        return LowRankFeedForward(width, hidden_size(self.ratio, width), self.rank, self.activation)
