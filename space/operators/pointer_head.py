"""A head whose classes are the places of its input.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["PointerHead", "PointerScores"]


class PointerScores(nn.Module):
    """`score[i, j] = v . tanh(key(x_j) + query(x_i))`, the logit that token i points at token j: [B, T, T].

    Queries are taken `block` at a time, since every pair has F numbers.
    """

    def __init__(self, width: int, hidden: int, causal: bool, block: int = 64):
        super().__init__()
        self.causal, self.block = causal, block
        self.key = nn.Linear(width, hidden, bias=False)
        self.query = nn.Linear(width, hidden, bias=False)
        self.score = nn.Parameter(torch.empty(1, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        key_B1TF = self.key(x_BTD)[:, None]
        rows = [torch.tanh(key_B1TF + query_BIF[:, :, None]) @ self.score[0] for query_BIF in
                self.query(x_BTD).split(self.block, 1)]
        score_BTT = torch.cat(rows, 1)
        if not self.causal:
            return score_BTT
        later_TT = torch.ones_like(score_BTT[0], dtype=torch.bool).triu(1)
        return score_BTT.masked_fill(later_TT, torch.finfo(x_BTD.dtype).min)


@dataclass(frozen=True)
class PointerHead(Operator):
    """Pointer Networks (Vinyals et al., 2015): attention over the input, taken as the output's distribution.

    Every token points at the tokens of its own sequence, so there are as many classes as tokens. hidden: units of the score.
    backwards: whether only tokens before it, and itself, can be pointed at.
    """

    hidden: Any = 64
    backwards: Any = False
    kind: ClassVar[str] = "head"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Pointer Networks", 2015, options=("S388",))

    def check(self, width: int, where: str) -> None:
        require_whole("hidden", self.hidden, where)

    def axes(self, width: int) -> dict[str, Param]:
        f, d = axis("hidden", self.hidden), axis("width", width)
        return {"key.weight": param(f, d), "query.weight": param(f, d), "score": param(axis("one", 1), f)}

    def build(self, width: int) -> nn.Module:
        return PointerScores(width, self.hidden, bool(self.backwards))

    def macs(self, width: int, length: int) -> float:
        """Both projections, and the score of every pair."""
        return float(2 * width * self.hidden * length + self.hidden * length * length)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
