"""A mixture of experts in which a token takes as many experts as its router is unsure.

Legend: B batch, T tokens, N tokens of all sequences, D width, E experts, R rows: pairs of a token and an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .mlp import check_ratio, hidden_size

__all__ = ["DynamicMoE", "ThresholdExperts"]


class ThresholdExperts(nn.Module):
    """Each token goes to the fewest experts whose probabilities add up to more than `top_p`, most probable first; their
    outputs are summed by probability, not rescaled. The rows of one expert are computed together."""

    def __init__(self, width: int, hidden: int, experts: int, top_p: float):
        super().__init__()
        self.top_p = top_p
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, hidden, width))
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        probability_NE = F.softmax(self.router(x_ND), -1)
        chosen_NE = self.chosen(probability_NE)
        expert_R, token_R = chosen_NE.t().nonzero(as_tuple=True)
        rows = torch.split(x_ND[token_R], chosen_NE.sum(0).tolist())
        y_RD = torch.cat([self.expert(rows_MD, *weights) for rows_MD, *weights in zip(
            rows, self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True) if len(rows_MD)])
        weighed_RD = y_RD * probability_NE[token_R, expert_R, None]
        return torch.zeros_like(x_ND).index_add(0, token_R, weighed_RD).view(x_BTD.shape)

    def chosen(self, probability_NE: Tensor) -> Tensor:
        """Which experts work on each token: those that more probable ones leave short of the threshold."""
        sorted_NE, order_NE = probability_NE.sort(dim=-1, descending=True, stable=True)
        # Rounded sums may pass 1, where a threshold of 1 still takes all.
        before_NE = (sorted_NE.cumsum(-1) - sorted_NE).clamp(max=1.0)
        return torch.zeros_like(before_NE, dtype=torch.bool).scatter(-1, order_NE, before_NE <= self.top_p)

    def expert(self, rows_MD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        """One expert's rows: `down(silu(gate(x)) * up(x))`."""
        return F.linear(F.silu(F.linear(rows_MD, gate_FD)) * F.linear(rows_MD, up_FD), down_DF)

    def experts_used(self, x_BTD: Tensor) -> Tensor:
        """How many experts work on each token, [B, T]."""
        return self.chosen(F.softmax(self.router(x_BTD), -1)).sum(-1)

    def uncertainty(self, x_BTD: Tensor) -> Tensor:
        """The mean entropy of the routers' probabilities, in nats: the paper's dynamic loss."""
        probability_BTE = F.softmax(self.router(x_BTD), -1)
        entropy: Tensor = torch.special.entr(probability_BTE).sum(-1).mean()
        return entropy


@dataclass(frozen=True)
class DynamicMoE(Operator):
    """Harder Tasks Need More Experts (Huang et al., 2024): top-p routing over SwiGLU experts.

    experts: how many there are. top_p: the probability that a token's experts must exceed; 1 takes all. ratio: hidden size
    of each over width, rounded up to a multiple of 8. A router lowers its loss by being flat and taking many experts;
    add `uncertainty(x)` of the module to the training loss, the paper with weight 1e-4, to hold it back.

    Multiply-adds depend on the input. `macs` counts `expected_experts`, what a router takes at the start of training,
    where the scores of normalised tokens are standard normal; `experts_used(x)` of the module counts what it does take.
    """

    experts: Any = 16
    top_p: Any = 0.4
    ratio: Any = 2
    kind: ClassVar[str] = "channel"
    chooses: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    causal_to_the_bit: ClassVar[bool] = False      # an expert's rows are multiplied together, later ones included
    batched: ClassVar[frozenset[str]] = frozenset({"experts"})
    source: ClassVar[Source] = Source("Harder Tasks Need More Experts: Dynamic Routing in MoE Models", 2024,
                                      systems=("S284",))

    def check(self, width: int, where: str) -> None:
        require_whole("experts", self.experts, where)
        check_ratio(self.ratio, where)
        if isinstance(self.top_p, bool) or not isinstance(self.top_p, (int, float)) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a probability above 0 at {where}: got {self.top_p!r}; use 0.4, or 1 for all "
                             "experts")

    @property
    def expected_experts(self) -> float:
        """Experts per token where scores are standard normal: the share of experts that hold `top_p` of the sum of
        exponentials of many scores, Phi(Phi^-1(top_p) - 1), and half an expert for the last one, which is taken whole."""
        if self.top_p == 1:
            return float(self.experts)
        normal = NormalDist()
        return float(min(max(1.0, self.experts * normal.cdf(normal.inv_cdf(self.top_p) - 1) + 0.5), self.experts))

    def axes(self, width: int) -> dict[str, Param]:
        e, f, d = axis("experts", self.experts), axis("hidden", hidden_size(self.ratio, width)), axis("width", width)
        each = Init("last")
        return {"gate": param(e, f, d, init=each), "up": param(e, f, d, init=each), "down": param(e, d, f, init=each),
                "router.weight": param(e, d)}

    def build(self, width: int) -> nn.Module:
        return ThresholdExperts(width, hidden_size(self.ratio, width), self.experts, self.top_p)

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        return tokens_of(length) * self.decode_macs(width, 0)

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """The router, and the experts that a token takes on average."""
        return float(width * self.experts + 3 * self.expected_experts * width * hidden_size(self.ratio, width))
