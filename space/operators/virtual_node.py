"""A node that all tokens write to and read from.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["VirtualNode", "VirtualNodeUpdate"]

POOLS = ("mean", "sum")


class VirtualNodeUpdate(nn.Module):
    """`down(relu(up(pool(x))))` for every token, the pool being of all tokens or, causal, of those so far."""

    def __init__(self, width: int, hidden: int, pool: str, bidirectional: bool):
        super().__init__()
        self.width, self.pool, self.bidirectional = width, pool, bidirectional
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        return {"total": torch.zeros(batch, self.width, dtype=wide, device=device),
                "seen": torch.zeros(batch, dtype=wide, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Causal only: the next tokens, with the sum and the number of those so far as state."""
        if self.bidirectional:
            node_B1D = x_BTD.mean(1, keepdim=True) if self.pool == "mean" else x_BTD.sum(1, keepdim=True)
            return self.updated(node_B1D).expand_as(x_BTD), {}
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        total_BTD = state["total"][:, None] + x_BTD.to(state["total"].dtype).cumsum(1)
        seen_BT = state["seen"][:, None] + torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)
        node_BTD = total_BTD / seen_BT[..., None] if self.pool == "mean" else total_BTD
        return self.updated(node_BTD.to(x_BTD.dtype)), {"total": total_BTD[:, -1].clone(), "seen": seen_BT[:, -1].clone()}

    def updated(self, node_BTD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(node_BTD)))                                  # type: ignore[no-any-return]


@dataclass(frozen=True)
class VirtualNode(Operator):
    """The virtual node of message passing networks: On the Connection Between MPNN and Graph Transformer (Cai et al., 2023).

    All tokens are pooled, two layers transform the pool, and every token gets the result, which the residual adds: global
    mixing of constant depth, to stand beside a local mixer (`Parallel(branches=(ShortConv(), VirtualNode()))`).
    pool: "mean" or "sum". ratio: hidden units over width. bidirectional: False pools the tokens so far, with a decode state.
    """

    pool: Any = "mean"
    ratio: Any = 2
    bidirectional: Any = True
    source: ClassVar[Source] = Source("On the Connection Between MPNN and Graph Transformer", 2023, systems=("S132",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def check(self, width: int, where: str) -> None:
        require_whole("ratio", self.ratio, where)
        if self.pool not in POOLS:
            raise ValueError(f"{unknown('pool', self.pool, POOLS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, hidden = axis("width", width), axis("ratio", self.ratio) * axis("hidden", width)
        return {"up.weight": param(hidden, d), "up.bias": param(hidden, init="zeros"),
                "down.weight": param(d, hidden), "down.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return VirtualNodeUpdate(width, self.ratio * width, self.pool, bool(self.bidirectional))

    def macs(self, width: int, length: int) -> float:
        """One update for all tokens together, or one per token where each sees another pool."""
        return float(self.matrix_numel(width) * (1 if self.bidirectional else length))

    def state_numel(self, width: int, length: int) -> int:
        return 0 if self.bidirectional else width + 1
