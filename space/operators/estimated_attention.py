"""Sparse attention to what a linear estimate of the attention matrix finds largest.

Legend: B batch, T tokens, D width, H heads, P head_dim, F random features, M marks, E hidden units of the estimator, K
columns of the estimate, C cells (groups of neighbouring tokens), N chosen cells, S tokens of a cell, J = N * S.
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
from .layernorm import LayerNorm, LayerNormalisation
from .nprf import normal_numbers
from .recurrence import check_heads
from .short_conv import tap_init

__all__ = ["SEA", "EstimatedAttention"]

ROWS = 256


class EstimatedAttention(nn.Module):
    """A kernel attention over marks of the positions and values feeds a small network that gives every query a distribution
    over K columns, the sequence at K places; softmax attention follows to the tokens of the largest columns alone, mixed
    with the mean of all values.

    The choice has no gradient. The estimate gets one through the scores, as if its logarithm had been added; the paper
    trains it on a teacher's attention matrix, against which `estimate(x)` can be held.
    """

    def __init__(self, width: int, heads: int, head_dim: int, features: int, tokens: int, columns: int, channels: int,
                 rows: int = 256):
        super().__init__()
        self.heads, self.head_dim, self.features, self.tokens, self.rows = heads, head_dim, features, tokens, rows
        inner, hidden = heads * head_dim, 2 * head_dim
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.encode = nn.Linear(3 * head_dim, hidden)
        self.norm = LayerNormalisation(hidden)
        self.decode = nn.Linear(hidden, columns)
        self.trust = nn.Linear(hidden, 1)
        self.widen = nn.Parameter(torch.empty(channels, heads, 3, 3))
        self.narrow = nn.Parameter(torch.empty(heads, channels, 3, 3))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTP, k_BHTP, v_BHTP = self.projected(x_BTD)
        hidden_BHTE = self.encoded(q_BHTP, k_BHTP, v_BHTP)
        estimate_BHTK = self.decoded(hidden_BHTE)
        blocks = zip(torch.split(q_BHTP, self.rows, 2), torch.split(estimate_BHTK, self.rows, 2), strict=True)
        near_BHTP = torch.cat([self.attended(q, k_BHTP, v_BHTP, estimate) for q, estimate in blocks], dim=2)
        trust_BHT1 = torch.sigmoid(self.trust(hidden_BHTE))
        y_BHTP = trust_BHT1 * near_BHTP + (1 - trust_BHT1) * v_BHTP.mean(2, keepdim=True)
        y_BTD: Tensor = self.out(y_BHTP.transpose(1, 2).flatten(2))
        return y_BTD

    def estimate(self, x_BTD: Tensor) -> Tensor:
        """The estimated attention, [B, H, T, K]: a distribution over K stretches of the sequence for every query."""
        return self.decoded(self.encoded(*self.projected(x_BTD)))

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                     for project in (self.query, self.key, self.value))

    def encoded(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor) -> Tensor:
        """What the kernel attention finds, and the token's own value, in hidden units."""
        dtype = torch.promote_types(v_BHTP.dtype, torch.float32)
        weight_HFP = normal_numbers(self.heads, self.features, self.head_dim, v_BHTP.device, dtype)
        q_BHTF, k_BHTF = (each.to(dtype) * self.head_dim**-0.25 @ weight_HFP.transpose(1, 2)
                          - each.to(dtype).square().sum(-1, keepdim=True) * (self.head_dim**-0.5 / 2)
                          for each in (q_BHTP, k_BHTP))
        # A factor per query, and one per head, stands above and below the line: the largest may be 1.
        q_BHTF = (q_BHTF - q_BHTF.detach().amax(3, keepdim=True)).exp() + 1e-4
        k_BHTF = (k_BHTF - k_BHTF.detach().amax((2, 3), keepdim=True)).exp() + 1e-4
        marks_TM = self.marks(v_BHTP.shape[2], v_BHTP.device, dtype).expand(*v_BHTP.shape[:2], -1, -1)
        found = torch.cat([marks_TM, v_BHTP.to(dtype), torch.ones_like(marks_TM[..., :1])], dim=-1)
        found = q_BHTF @ (k_BHTF.transpose(2, 3) @ found)
        found = (found[..., :-1] / found[..., -1:]).to(v_BHTP.dtype)
        return F.gelu(self.norm(self.encode(torch.cat([found, v_BHTP], dim=-1))))

    def marks(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The positions, as weights of the two nearest of P marks along the sequence: [T, M]."""
        place_T1 = torch.arange(length, device=device, dtype=dtype)[:, None] * ((self.head_dim - 1) / max(length - 1, 1))
        marks_TM: Tensor = (1 - (place_T1 - torch.arange(self.head_dim, device=device, dtype=dtype)).abs()).clamp_min(0)
        return marks_TM

    def decoded(self, hidden_BHTE: Tensor) -> Tensor:
        """The estimate: one row per query, then a convolution over queries and columns across heads."""
        rows_BHTK = self.decode(hidden_BHTE)
        smooth_BHTK = F.conv2d(F.relu(F.conv2d(rows_BHTK, self.widen, padding=1)), self.narrow, padding=1)
        estimate_BHTK: Tensor = (rows_BHTK + smooth_BHTK).softmax(-1)
        return estimate_BHTK

    def attended(self, q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor, estimate_BHTK: Tensor) -> Tensor:
        """Softmax attention of some queries to about `tokens` tokens each."""
        index_BHTJ, is_real_BHTJ, log_BHTJ = self.chosen(estimate_BHTK, k_BHSP.shape[2])
        batch_B111 = torch.arange(len(q_BHTP), device=q_BHTP.device)[:, None, None, None]
        head_H11 = torch.arange(self.heads, device=q_BHTP.device)[:, None, None]
        k_BHTJP, v_BHTJP = k_BHSP[batch_B111, head_H11, index_BHTJ], v_BHSP[batch_B111, head_H11, index_BHTJ]
        score_BHTJ = (k_BHTJP @ q_BHTP[..., None])[..., 0] * self.head_dim**-0.5 + (log_BHTJ - log_BHTJ.detach())
        weight_BHT1J = score_BHTJ.masked_fill(~is_real_BHTJ, -torch.inf).softmax(-1)[..., None, :]
        y_BHTP: Tensor = (weight_BHT1J @ v_BHTJP)[..., 0, :]
        return y_BHTP

    def chosen(self, estimate_BHTK: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of the cells with the largest estimates, whether they are tokens of it, and the log estimates."""
        columns, device = estimate_BHTK.shape[-1], estimate_BHTK.device
        cells, size, count = cell_numbers(length, columns, self.tokens)
        cell_C = torch.arange(cells, device=device)
        largest_BHTN = estimate_BHTK[..., cell_C * columns // cells].topk(count, dim=-1)
        first_BHTN = (largest_BHTN.indices * length + cells - 1) // cells
        end_BHTN = ((largest_BHTN.indices + 1) * length + cells - 1) // cells
        index_BHTNS = first_BHTN[..., None] + torch.arange(size, device=device)
        is_real_BHTJ = (index_BHTNS < end_BHTN[..., None]).flatten(3)
        log_BHTNS = largest_BHTN.values.clamp_min(1e-12).log()[..., None].expand(index_BHTNS.shape)
        return index_BHTNS.clamp_max(length - 1).flatten(3), is_real_BHTJ, log_BHTNS.flatten(3)


def cell_numbers(length: int, columns: int, tokens: int) -> tuple[int, int, int]:
    """How many cells a sequence has, how many tokens the largest holds, and how many cells hold about `tokens`."""
    cells = min(columns, length)
    return cells, -(-length // cells), min(cells, max(1, round(tokens * cells / length)))


@dataclass(frozen=True)
class SEA(Operator):
    """SEA: Sparse Linear Attention with Estimated Attention Mask (Lee et al., 2024).

    tokens: about how many tokens a query attends to. columns of the estimated attention matrix. features: random features
    of the kernel attention, normal directions computed in every pass. channels of the convolution between heads. head_dim
    defaults to width / heads. Time and memory are linear in the length up to tokens * columns tokens.

    Both ways, as in the paper's encoders: a position says how far along the whole sequence it is. The two convolutions are
    3 x 3 with a residual; the authors' decoder also scales its columns down and up.
    """

    heads: Any = 4
    tokens: Any = 64
    columns: Any = 128
    features: Any = 64
    channels: Any = 16
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "heads": "a head has its own random directions", "key_dim": "an entry is a coordinate of random directions",
        "marks": "a mark is a place along the sequence", "columns": "a column is a stretch of the sequence"}
    source: ClassVar[Source] = Source("SEA: Sparse Linear Attention with Estimated Attention Mask", 2024, systems=("S397",))

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        for name in ("tokens", "columns", "features", "channels"):
            require_whole(name, getattr(self, name), where)

    def axes(self, width: int) -> dict[str, Param]:
        d, h, size = axis("width", width), axis("heads", self.heads), self._head_dim(width)
        v, e, c = axis("value_dim", size), axis("estimator", 2 * size), axis("channels", self.channels)
        keys, columns = h * axis("key_dim", size), axis("columns", self.columns, "spread")
        taps = axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre")
        norm = {f"norm.{name}": part for name, part in LayerNorm().axes(2 * size).items()}
        return {
            "query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(h * v, d),
            "out.weight": param(d, h * v), "encode.weight": param(e, axis("marks", size) + v + v),
            "encode.bias": param(e, init="zeros"), "decode.weight": param(columns, e),
            "decode.bias": param(columns, init="zeros"), "trust.weight": param(axis("trust", 1), e),
            "trust.bias": param(axis("trust", 1), init="zeros"),
            "widen": param(c, h, *taps, init=tap_init(9 * self.heads)),
            "narrow": param(h, c, *taps, init=tap_init(9 * self.channels)),
            **{name: param(e, share="own", init=part.init) for name, part in norm.items()}}

    def build(self, width: int) -> nn.Module:
        return EstimatedAttention(width, self.heads, self._head_dim(width), self.features, self.tokens, self.columns,
                                  self.channels, ROWS)

    def macs(self, width: int, length: int) -> float:
        """Projections of tokens, kernel attention, estimator, and the chosen pairs."""
        size = self._head_dim(width)
        kernel = 2 * self.features * (3 * size + 1)
        estimator = 2 * size * (3 * size + self.columns + 1) + 2 * 9 * self.channels * self.columns
        _, largest, count = cell_numbers(length, self.columns, self.tokens)
        return float(length * (4 * width * self.heads * size
                               + self.heads * (kernel + estimator + 2 * size * largest * count)))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
