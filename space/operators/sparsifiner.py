"""Sparse attention to what a low-rank predictor of the attention matrix expects to be largest.

Legend: B batch, T tokens, D width, H heads, P head_dim, C routing dims, R rank, N places of the tables, J tokens kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .gathered import ROWS
from .windows import check_heads, head_size

__all__ = ["PredictedAttention", "Sparsifiner"]


class PredictedAttention(nn.Module):
    """`A = softmax(q W (k W' summed by `down`)^T) |up|^T`, small coefficients left out, estimates the attention matrix; then
    softmax attention to the largest entries of each of its rows.

    The choice has no gradient. The estimate gets one through the scores, as if its logarithm had been added; the authors
    train it to reconstruct the matrix, which `estimate(x)` gives. The tables of places are stretched to the length of the
    sequence.
    """

    def __init__(self, width: int, heads: int, head_dim: int, routing_dim: int, rank: int, tokens: int, keep: float,
                 threshold: float, rows: int = 256):
        super().__init__()
        self.heads, self.keep, self.threshold, self.rows = heads, keep, threshold, rows
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.route_query = nn.Linear(head_dim, routing_dim, bias=False)
        self.route_key = nn.Linear(head_dim, routing_dim, bias=False)
        self.down = nn.Parameter(torch.empty(tokens, rank))
        self.up = nn.Parameter(torch.empty(tokens, rank))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.projected(x_BTD)
        coefficients_BHTR, up_TR = self.factors(q, k)
        rows = zip(torch.split(q, self.rows, 2), torch.split(coefficients_BHTR, self.rows, 2), strict=True)
        y_BHTP = torch.cat([self.attended(part, k, v, rank @ up_TR.T) for part, rank in rows], dim=2)
        y_BTD: Tensor = self.out(y_BHTP.transpose(1, 2).flatten(2))
        return y_BTD

    def estimate(self, x_BTD: Tensor) -> Tensor:
        """The estimate of the whole attention matrix, [B, H, T, T], which is not negative."""
        q, k, _ = self.projected(x_BTD)
        coefficients_BHTR, up_TR = self.factors(q, k)
        return coefficients_BHTR @ up_TR.T

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                     for project in (self.query, self.key, self.value))

    def factors(self, q_BHTP: Tensor, k_BHTP: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of each row, and the columns they weigh."""
        length = q_BHTP.shape[2]
        q_BHTC, k_BHTC = self.route_query(q_BHTP), self.route_key(k_BHTP)
        basis_BHCR = k_BHTC.transpose(2, 3) @ stretched(self.down, length)
        coefficients_BHTR = (q_BHTC @ basis_BHCR / math.sqrt(q_BHTC.shape[-1])).softmax(-1)
        coefficients_BHTR = coefficients_BHTR.masked_fill(coefficients_BHTR <= self.threshold, 0.0)
        return coefficients_BHTR, stretched(self.up, length).abs()

    def attended(self, q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor, estimate_BHTS: Tensor) -> Tensor:
        """Softmax attention of some queries to the tokens kept for each."""
        best_BHTJ = estimate_BHTS.topk(kept_of(k_BHSP.shape[2], self.keep), dim=-1)
        batch_B111 = torch.arange(len(q_BHTP), device=q_BHTP.device)[:, None, None, None]
        head_H11 = torch.arange(self.heads, device=q_BHTP.device)[:, None, None]
        k_BHTJP, v_BHTJP = k_BHSP[batch_B111, head_H11, best_BHTJ.indices], v_BHSP[batch_B111, head_H11, best_BHTJ.indices]
        log_BHTJ = best_BHTJ.values.clamp_min(1e-6).log()
        score_BHTJ = (k_BHTJP @ q_BHTP[..., None])[..., 0] / math.sqrt(q_BHTP.shape[-1]) + (log_BHTJ - log_BHTJ.detach())
        y_BHTP: Tensor = (score_BHTJ.softmax(-1)[..., None, :] @ v_BHTJP)[..., 0, :]
        return y_BHTP


def stretched(table_NR: Tensor, length: int) -> Tensor:
    """A table of places as one of `length` places, by the two nearest: [T, R]."""
    places = table_NR.shape[0]
    if places == length:
        return table_NR
    dtype = torch.promote_types(table_NR.dtype, torch.float32)
    place_T = torch.arange(length, device=table_NR.device, dtype=dtype) * ((places - 1) / max(length - 1, 1))
    low_T = place_T.floor().clamp(max=max(places - 2, 0))
    part_T1 = (place_T - low_T)[:, None].to(table_NR.dtype)
    index_T = low_T.long()
    return table_NR[index_T] * (1 - part_T1) + table_NR[(index_T + 1).clamp(max=places - 1)] * part_T1


def kept_of(length: int, keep: float) -> int:
    """Tokens that each token attends to."""
    return max(1, math.ceil(keep * length))


@dataclass(frozen=True)
class Sparsifiner(Operator):
    """Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers (Wei et al., 2023).

    keep: share of the tokens that each attends to; all, and this is full attention. rank of the estimate, and tokens it has
    places for (those of the authors' images), which other lengths stretch. routing_dim of a head's vectors that are compared
    for it, by default half of head_dim; the authors' code scales their products by the number of heads, here by the
    dimension. threshold: coefficients up to this are left out; below 1 / rank one always stays. head_dim defaults to
    width / heads. Both ways: the estimate joins all tokens. The estimate is quadratic in the tokens, at `rank` for each pair.
    """

    heads: Any = 4
    keep: Any = 0.25
    rank: Any = 24
    tokens: Any = 197
    routing_dim: Any = None
    threshold: Any = 0.01
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"places": "an entry is a place along the sequence"}
    source: ClassVar[Source] = Source("Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision "
                                      "Transformers", 2023, systems=("S395",))

    def _routing_dim(self, width: int) -> int:
        return int(self.routing_dim or max(head_size(self, width) // 2, 1))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        for name in ("rank", "tokens"):
            require_whole(name, getattr(self, name), where)
        require_whole("routing_dim", self._routing_dim(width), where)
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be a share of the tokens in (0, 1] at {where}: got {self.keep}; use 0.25")
        if not 0 <= self.threshold < 1 / self.rank:
            raise ValueError(f"threshold must be at least 0 and below 1 / rank at {where}: got {self.threshold} for rank "
                             f"{self.rank}; use {0.25 / self.rank:.3g}")

    def axes(self, width: int) -> dict[str, Param]:
        d, size = axis("width", width), head_size(self, width)
        keys, values = (axis("heads", self.heads) * axis(name, size) for name in ("key_dim", "value_dim"))
        c, k = axis("routing_dim", self._routing_dim(width)), axis("key_dim", size)
        tables = param(axis("places", self.tokens, "spread"), axis("rank", self.rank), init=Init("normal", gain=0.02))
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                "out.weight": param(d, values), "route_query.weight": param(c, k), "route_key.weight": param(c, k),
                "down": tables, "up": tables}

    def build(self, width: int) -> nn.Module:
        return PredictedAttention(width, self.heads, head_size(self, width), self._routing_dim(width), self.rank, self.tokens,
                                  self.keep, self.threshold, ROWS)

    def macs(self, width: int, length: int) -> float:
        """Projections, the estimate of all pairs, and the pairs kept."""
        size, c = head_size(self, width), self._routing_dim(width)
        token = 4 * width * size + 2 * size * c + 2 * c * self.rank
        pairs = self.rank * length + 2 * size * kept_of(length, self.keep)
        return float(length * self.heads * (token + pairs))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
