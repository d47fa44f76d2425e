"""Attention through agents: a few pooled queries gather from all tokens, and all tokens ask them.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), N agents, K heads, P head_dim, S side of a
table of biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import square_taps
from .recurrence import check_heads
from .spatial import as_grid, require_odd

__all__ = ["AgentAttention", "AgentMixer"]


class AgentMixer(nn.Module):
    """`softmax(Q A^T + bias) softmax(A K^T + bias) V` plus a depthwise convolution of V, with agents A pooled from Q.

    Each of the two biases of an agent and a place is that of a table, that of the row and that of the column, stretched to
    the grid. A sequence has all its agents along its one column.
    """

    def __init__(self, width: int, heads: int, head_dim: int, side: int, table: int, kernel: int):
        super().__init__()
        self.heads, self.side = heads, side
        inner = heads * head_dim
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        # Of gathering and of asking.
        self.blocks = nn.Parameter(torch.empty(2, heads, side, side, table, table)) if table else None
        self.lines = nn.Parameter(torch.empty(2, 2, heads, side, side, table)) if table else None
        self.taps = nn.Parameter(torch.empty(inner, kernel, kernel)) if kernel else None
        self.shift = nn.Parameter(torch.empty(inner)) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        q_BHWE, v_BHWE = self.query(x_BHWD), self.value(x_BHWD)
        agents = (self.side, self.side) if x.ndim == 4 else (self.side**2, 1)
        a_BEN = F.adaptive_avg_pool2d(q_BHWE.permute(0, 3, 1, 2), agents).flatten(2)
        q, k, v = (each.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for each in (q_BHWE, self.key(x_BHWD), v_BHWE))
        a_BKNP = a_BEN.view(len(x), self.heads, -1, a_BEN.shape[-1]).transpose(2, 3)
        gather, ask = self.biases(x_BHWD.shape[1], x_BHWD.shape[2], x.dtype)
        gathered_BKNP = F.scaled_dot_product_attention(a_BKNP, k, v, attn_mask=gather)
        y_BKTP = F.scaled_dot_product_attention(q, a_BKNP, gathered_BKNP, attn_mask=ask)
        y_BTE = y_BKTP.transpose(1, 2).flatten(2)
        if self.taps is not None:
            y_BTE = y_BTE + self.convolved(v_BHWE, self.taps)
        y_BTD: Tensor = self.out(y_BTE)
        return y_BTD.view(x.shape)

    def biases(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Of agents to places, [1, K, N, T], and of places to agents, [1, K, T, N]."""
        if self.blocks is None or self.lines is None:
            return None, None
        block = F.interpolate(self.blocks.flatten(2, 3).flatten(0, 1), (rows, columns), mode="bilinear")
        row, column = (F.interpolate(line.flatten(2, 3).flatten(0, 1), size, mode="linear")
                       for line, size in zip(self.lines, (rows, columns), strict=True))
        both = (block + row[..., :, None] + column[..., None, :]).flatten(2).view(2, 1, self.heads, self.side**2, -1)
        return both[0].to(dtype), both[1].transpose(2, 3).to(dtype)

    def convolved(self, v_BHWE: Tensor, taps: Tensor) -> Tensor:
        """What the agents, smoothing all they gather, lose: values of the neighbours, [B, T, E]."""
        channels, kernel, _ = taps.shape
        y_BEHW = F.conv2d(v_BHWE.permute(0, 3, 1, 2), taps[:, None], self.shift, padding=kernel // 2, groups=channels)
        return y_BEHW.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class AgentAttention(Operator):
    """Agent Attention: On the Integration of Softmax and Linear Attention (Han et al., 2023).

    side: the agents are side x side averages of the grid's queries. table: side of the tables of biases, stretched to the
    grid (the paper's lines of biases have the length of a fixed grid); None for no biases. kernel: side of the depthwise
    filter over the values, odd; None for none. head_dim defaults to width / heads. Without biases and filter, nothing but
    projections is trained, as where the paper puts it into trained models. A sequence is a grid of one column.
    """

    heads: Any = 4
    side: Any = 7
    table: Any = 7
    kernel: Any = 3
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("agent_rows", "agent_columns", "table_rows", "table_columns", "lines", "ways"), "a place in the image")
    source: ClassVar[Source] = Source("Agent Attention: On the Integration of Softmax and Linear Attention", 2023,
                                      systems=("S396",))

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        """The filter has a shift."""
        return not self.kernel

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        require_whole("side", self.side, where, instead="use 7 for 49 agents")
        require_whole("table", self.table or 0, where, low=0, instead="use 7, or None for no biases")
        if self.kernel is not None:
            require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, k = axis("width", width), axis("heads", self.heads)
        keys, values = k * axis("key_dim", self._head_dim(width)), k * axis("value_dim", self._head_dim(width))
        declared = {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                    "out.weight": param(d, values)}
        if self.table:
            small, ways = Init("normal", gain=0.02), axis("ways", 2)
            agents = axis("agent_rows", self.side, "spread"), axis("agent_columns", self.side, "spread")
            places = (axis(f"table_{way}", self.table, "spread") for way in ("rows", "columns"))
            declared["blocks"] = param(ways, k, *agents, *places, init=small)
            line = axis("table_rows", self.table, "spread")
            declared["lines"] = param(axis("lines", 2), ways, k, *agents, line, init=small)
        if self.kernel:
            declared |= {"taps": square_taps(values, self.kernel), "shift": param(values, init="zeros")}
        return declared

    def build(self, width: int) -> nn.Module:
        return AgentMixer(width, self.heads, self._head_dim(width), self.side, self.table or 0, self.kernel or 0)

    def macs(self, width: int, length: Length) -> float:
        """Projections, the filter, and two attentions between all tokens and the agents."""
        inner = self.heads * self._head_dim(width)
        return float(tokens_of(length) * inner * (4 * width + (self.kernel or 0) ** 2 + 4 * self.side**2))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
