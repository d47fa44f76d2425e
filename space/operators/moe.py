"""A sparsely activated feed-forward layer: every token is worked on by a few of many experts.

Legend: B batch, T tokens, N tokens of all sequences, D width, E experts, K experts per token, R = N * K rows, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .mlp import check_ratio, hidden_size

__all__ = ["MoE", "SparseExperts"]


class SparseExperts(nn.Module):
    """Each token goes to the `top_k` experts with the largest router scores; their outputs are summed by weight.

    Weights are the softmax over the chosen experts' scores; a single expert weighs its share among all of them, without
    which the router would get no gradient. The rows of one expert are computed together, so only chosen experts cost.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, hidden, width))
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        weight_NK, expert_NK = self.route(x_ND)
        order_R = expert_NK.flatten().argsort(stable=True)
        counts_E = torch.bincount(expert_NK.flatten(), minlength=self.router.weight.shape[0]).tolist()
        rows = torch.split(x_ND[order_R // self.top_k], counts_E)
        y_RD = torch.cat([self.expert(rows_MD, *weights) for rows_MD, *weights in zip(
            rows, self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True) if len(rows_MD)])
        y_NKD = y_RD[order_R.argsort()].view(*weight_NK.shape, -1)
        return (y_NKD * weight_NK[..., None]).sum(1).view(x_BTD.shape)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of the experts of each token, each [N, K]."""
        score_NE = self.router(x_ND)
        score_NK, expert_NK = score_NE.topk(self.top_k, dim=-1)
        weight_NK = F.softmax(score_NE, -1).gather(-1, expert_NK) if self.top_k == 1 else F.softmax(score_NK, -1)
        return weight_NK, expert_NK

    def expert(self, rows_MD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        """One expert's rows: `down(silu(gate(x)) * up(x))`."""
        return F.linear(F.silu(F.linear(rows_MD, gate_FD)) * F.linear(rows_MD, up_FD), down_DF)


@dataclass(frozen=True)
class MoE(Operator):
    """A mixture of experts with token-choice routing (Shazeer et al., 2017), SwiGLU experts and the softmax over the
    chosen ones (Mixtral of Experts, Jiang et al., 2024); top_k=1 routes as Switch Transformers do (Fedus et al., 2021).

    experts: how many there are. top_k: how many work on a token. ratio: hidden size of each over width, rounded up to
    a multiple of 8. Nothing balances the load; give the training loss a term of its own where experts starve.
    """

    experts: Any = 8
    top_k: Any = 2
    ratio: Any = 2
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    causal_to_the_bit: ClassVar[bool] = False      # an expert's rows are multiplied together, later ones included
    batched: ClassVar[frozenset[str]] = frozenset({"experts"})
    source: ClassVar[Source] = Source("Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
                                      2017)

    def check(self, width: int, where: str) -> None:
        require_whole("experts", self.experts, where)
        require_whole("top_k", self.top_k, where)
        check_ratio(self.ratio, where)
        if self.top_k > self.experts:
            raise ValueError(f"top_k must not exceed experts at {where}: got {self.top_k} of {self.experts}; use at most "
                             f"{self.experts}")

    def axes(self, width: int) -> dict[str, Param]:
        e, f, d = axis("experts", self.experts), axis("hidden", hidden_size(self.ratio, width)), axis("width", width)
        each = Init("last")
        return {"gate": param(e, f, d, init=each), "up": param(e, f, d, init=each), "down": param(e, d, f, init=each),
                "router.weight": param(e, d)}

    def build(self, width: int) -> nn.Module:
        return SparseExperts(width, hidden_size(self.ratio, width), self.experts, self.top_k)

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        return tokens_of(length) * self.decode_macs(width, 0)

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """The router, and the experts that work on one token."""
        return float(width * self.experts + 3 * self.top_k * width * hidden_size(self.ratio, width))
