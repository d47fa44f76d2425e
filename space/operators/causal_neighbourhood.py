"""Attention of every token to a few before it, with gaps or without.

Legend: B batch, T new tokens, S tokens in reach, D width, K heads, P head_dim, M neighbours (kernel),
N neighbours of all tokens (T * M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .windows import check_heads, head_size, projections

__all__ = ["CausalNeighbourhood", "NeighboursBefore"]


class NeighboursBefore(nn.Module):
    """Tokens attend to themselves and to the `kernel` - 1 nearest before them whose distance is a multiple of `dilation`.

    Each step back has a bias per head. The cache keeps keys and values as far back as the last of them.
    """

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, dilation: int):
        super().__init__()
        self.heads, self.head_dim, self.kernel, self.dilation = heads, head_dim, kernel, dilation
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.bias = nn.Parameter(torch.empty(kernel, heads))

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, 0, self.heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        q_BTKP, k_BTKP, v_BTKP = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim))
                                  for project in (self.query, self.key, self.value))
        k_BSKP, v_BSKP = torch.cat([state["key"], k_BTKP], 1), torch.cat([state["value"], v_BTKP], 1)
        y_BTE = self.attend(q_BTKP, k_BSKP, v_BSKP)
        first = max(k_BSKP.shape[1] - (self.kernel - 1) * self.dilation, 0)
        return self.out(y_BTE), {"key": k_BSKP[:, first:], "value": v_BSKP[:, first:]}

    def attend(self, q_BTKP: Tensor, k_BSKP: Tensor, v_BSKP: Tensor) -> Tensor:
        """The T newest of S tokens with their neighbours: [B, T, K * P]."""
        new, reach = q_BTKP.shape[1], k_BSKP.shape[1]
        steps_M = torch.arange(1 - self.kernel, 1, device=q_BTKP.device)
        place_TM = torch.arange(reach - new, reach, device=q_BTKP.device)[:, None] + self.dilation * steps_M
        index_N = place_TM.clamp(min=0).flatten()
        k_BTKMP, v_BTKMP = (torch.unflatten(part.index_select(1, index_N), 1, place_TM.shape).transpose(2, 3)
                            for part in (k_BSKP, v_BSKP))
        scores_BTK1M = q_BTKP[:, :, :, None] @ k_BTKMP.transpose(-1, -2) / math.sqrt(self.head_dim)
        scores_BTK1M = (scores_BTK1M + self.bias.T[:, None]).masked_fill(place_TM[:, None, None] < 0, -torch.inf)
        return (scores_BTK1M.softmax(-1) @ v_BTKMP).flatten(2)


@dataclass(frozen=True)
class CausalNeighbourhood(Operator):
    """The causal form of Dilated Neighborhood Attention (Hassani and Shi, 2022) on sequences.

    kernel: tokens seen, the token itself included; the bias of a smaller one is that of the nearest of a larger one.
    dilation: step between them. head_dim defaults to width / heads. Linear in tokens; the state stops growing at (kernel - 1)
    * dilation tokens. On grids and in both directions: `NeighbourhoodAttention`.
    """

    heads: Any = 4
    kernel: Any = 7
    dilation: Any = 1
    head_dim: Any = None
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Dilated Neighborhood Attention Transformer", 2022, options=("S012",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("kernel", self.kernel, where)
        require_whole("dilation", self.dilation, where, instead="use 1 for neighbours without gaps")

    def axes(self, width: int) -> dict[str, Param]:
        bias = param(axis("steps", self.kernel, "trailing"), axis("heads", self.heads), init=Init("normal", gain=0.02))
        return {**projections(width, self.heads, head_size(self, width)), "bias": bias}

    def build(self, width: int) -> nn.Module:
        return NeighboursBefore(width, self.heads, head_size(self, width), self.kernel, self.dilation)

    def _pairs(self, length: int) -> int:
        """Tokens with those they see, over a sequence."""
        return sum(max(length - step * self.dilation, 0) for step in range(self.kernel))

    def macs(self, width: int, length: int) -> float:
        """Projections, and scores and values of what is seen."""
        return float(length * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * self._pairs(length))

    def decode_macs(self, width: int, length: int) -> float:
        """As executed: before there are enough tokens, absent ones are computed and not seen."""
        return float(self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * self.kernel)

    def state_numel(self, width: int, length: int) -> int:
        return int(2 * min(length, (self.kernel - 1) * self.dilation) * self.heads * head_size(self, width))
