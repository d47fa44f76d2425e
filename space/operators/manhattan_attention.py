"""Attention on a grid whose weights fade with the distance in rows and columns.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), K heads, P head_dim, F pairs, N tokens of
one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .causal_attention import rotate
from .depthwise_conv2d import square_taps
from .heads import projections_of, require_even
from .positional_attention import grid_offsets
from .spatial import as_grid, grid_of, require_odd
from .windows import check_heads, head_size

__all__ = ["ManhattanAttention", "ManhattanRetention"]


class ManhattanRetention(nn.Module):
    """`softmax(q.k / sqrt(P)) * gamma_k ** (|rows| + |columns|)`, plus a depthwise convolution of the values.

    decompose: along the rows first and then along the columns, each with its own part of the decay. inside: the decay is
    among the scores, so that weights still sum to 1. Queries and keys turn by the tokens' number, row by row.
    """

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, decompose: bool, inside: bool, first: float,
                 span: float, rotary: bool):
        super().__init__()
        self.heads, self.head_dim, self.first, self.span = heads, head_dim, first, span
        self.decompose, self.inside, self.rotary = decompose, inside, rotary
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.taps = nn.Parameter(torch.empty(heads * head_dim, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        v_BHWE = self.value(x_BHWD)
        q, k, v = (part.unflatten(-1, (self.heads, self.head_dim)) for part in (self.query(x_BHWD), self.key(x_BHWD), v_BHWE))
        if self.rotary:
            turn = self.turn(x_BHWD)
            q, k = rotate(q, *turn), rotate(k, *turn)
        y_BHWKP = self.by_lines(q, k, v) if self.decompose else self.by_pairs(q, k, v)
        y_BHWD: Tensor = self.out(y_BHWKP.flatten(3) + self.local(v_BHWE))
        return y_BHWD.view(x.shape)

    def turn(self, x_BHWD: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each [H, W, 1, F]; frequencies from 1 to 1 / 10000, both included."""
        rows, columns = x_BHWD.shape[1:3]
        dtype = torch.promote_types(x_BHWD.dtype, torch.float32)
        rate_F = 10000.0 ** -torch.linspace(0, 1, self.head_dim // 2, dtype=dtype, device=x_BHWD.device)
        angle_TF = torch.outer(torch.arange(rows * columns, dtype=dtype, device=x_BHWD.device), rate_F)
        angle_HW1F = angle_TF.view(rows, columns, 1, -1)
        return angle_HW1F.cos().to(x_BHWD.dtype), angle_HW1F.sin().to(x_BHWD.dtype)

    def by_pairs(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All tokens with all."""
        rows, columns = q.shape[1:3]
        q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
        row_TT, column_TT = grid_offsets(rows, columns, q)
        y_BTKP = self.faded(q, k, v, row_TT.abs() + column_TT.abs()).transpose(1, 2)
        return torch.unflatten(y_BTKP, 1, (rows, columns))

    def by_lines(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Along each row, then along each column."""
        q, k, v = (part.transpose(2, 3) for part in (q, k, v))                       # [B, H, K, W, P]
        v = self.faded(q, k, v, grid_offsets(1, q.shape[3], q)[1].abs())
        q, k, v = (part.permute(0, 3, 2, 1, 4) for part in (q, k, v))                # [B, W, K, H, P]
        v = self.faded(q, k, v, grid_offsets(q.shape[3], 1, q)[0].abs())
        return v.permute(0, 3, 1, 2, 4)

    def faded(self, q: Tensor, k: Tensor, v: Tensor, distance_NN: Tensor) -> Tensor:
        """Attention [..., K, N, P] with its decay."""
        log_K11 = torch.tensor(self.log_decays(), dtype=q.dtype, device=q.device)[:, None, None]
        score = torch.matmul(q, k.mT) * self.head_dim**-0.5
        if self.inside:
            return torch.matmul(torch.softmax(score + log_K11 * distance_NN, -1), v)
        return torch.matmul(torch.softmax(score, -1) * torch.exp(log_K11 * distance_NN), v)

    def log_decays(self) -> list[float]:
        """log(1 - 2 ** -(first + span k / K)) of head k."""
        return [math.log1p(-(2.0 ** -(self.first + self.span * k / self.heads))) for k in range(self.heads)]

    def local(self, v_BHWE: Tensor) -> Tensor:
        channels, kernel, _ = self.taps.shape
        y_BEHW = F.conv2d(v_BHWE.permute(0, 3, 1, 2), self.taps[:, None], padding=kernel // 2, groups=channels)
        return y_BEHW.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class ManhattanAttention(Operator):
    """RMT: Retentive Networks Meet Vision Transformers (Fan et al., 2023): Manhattan self-attention.

    decompose: lines instead of all pairs, as in the paper's first three stages. first, span: decays from 1 - 2 ** -first
    for the first head towards 1 - 2 ** -(first + span). kernel: side of the local filter on the values, odd. inside: False
    for the paper's formula, softmax times decay; True for the authors' code, decay inside the softmax. rotary: as in the
    authors' code. head_dim defaults to width / heads. A sequence is a grid of one column.
    """

    heads: Any = 4
    decompose: Any = True
    first: Any = 2.0
    span: Any = 4.0
    kernel: Any = 5
    inside: Any = False
    rotary: Any = True
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("RMT: Retentive Networks Meet Vision Transformers", 2023, systems=("S240",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}
        return {"heads": "a head has its decay", **pairs}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_even(head_size(self, width), where)
        require_odd("kernel", self.kernel, where)
        if not (self.first > 0 and self.span >= 0):
            raise ValueError(f"first must be above 0 and span at least 0 at {where}: got {self.first} and {self.span}; "
                             "use 2.0 and 4.0")

    def axes(self, width: int) -> dict[str, Param]:
        size, k = head_size(self, width), axis("heads", self.heads)
        values = k * axis("head_dim", size)
        return {**projections_of(axis("width", width), k * axis("half", 2) * axis("pairs", size // 2), values),
                "taps": square_taps(values, self.kernel)}

    def build(self, width: int) -> nn.Module:
        return ManhattanRetention(width, self.heads, head_size(self, width), self.kernel, bool(self.decompose),
                                  bool(self.inside), self.first, self.span, bool(self.rotary))

    def macs(self, width: int, length: Length) -> float:
        """Projections, scores and values of the pairs on lines or of all, and the local filter."""
        tokens, inner = tokens_of(length), self.heads * head_size(self, width)
        pairs = tokens * sum(grid_of(length)) if self.decompose else tokens**2
        return float(tokens * (self.matrix_numel(width) + inner * self.kernel**2) + 2 * inner * pairs)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
