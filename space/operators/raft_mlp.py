"""A token MLP along one direction of a grid, over several channels at once.

Legend: B batch, H and W rows and columns of tokens, D width, R channels of a raft, O rafts (D / R), S places along the
direction, L lines across it, F hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_divisor, require_whole
from .mlp import check_ratio
from .spatial import as_grid, grid_of

__all__ = ["RaftMLP", "RaftMixing"]

DIRECTIONS = ("rows", "columns")


class RaftMixing(nn.Module):
    """`down(gelu(up(y)))` of the R * S numbers y that a raft of channels has in one column ("rows") or one row ("columns").

    Lines of another length than S are stretched to it bicubically, and back.
    """

    def __init__(self, side: int, raft: int, hidden: int, along: str):
        super().__init__()
        self.along = along
        self.up = nn.Parameter(torch.empty(hidden, side, raft))
        self.down = nn.Parameter(torch.empty(side, raft, hidden))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BLSD = x_BHWD.transpose(1, 2) if self.along == "rows" else x_BHWD
        places, (side, raft, _) = x_BLSD.shape[2], self.down.shape
        x_BLSOR = torch.unflatten(stretched(x_BLSD, side), -1, (-1, raft))
        h_BLOF = F.gelu(torch.einsum("blsor,fsr->blof", x_BLSOR, self.up))
        y_BLSD = torch.einsum("blof,srf->blsor", h_BLOF, self.down).flatten(-2)
        y_BLSD = stretched(y_BLSD, places)
        return (y_BLSD.transpose(1, 2) if self.along == "rows" else y_BLSD).reshape(x.shape)


def stretched(x_BLSD: Tensor, places: int) -> Tensor:
    """Lines of another length, bicubically."""
    if x_BLSD.shape[2] == places:
        return x_BLSD
    x_BDLS = F.interpolate(x_BLSD.permute(0, 3, 1, 2), (x_BLSD.shape[1], places), mode="bicubic", align_corners=False)
    return x_BDLS.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class RaftMLP(Operator):
    """RaftMLP (Tatsunami and Taki, 2021): the vertical or the horizontal token-mixing MLP.

    side: places along the direction that there are weights for; of another grid the features are stretched, as the authors'
    code does (the paper: the weights). raft: channels mixed together with the places, neighbours in the stream (in the
    paper width / raft apart). ratio: hidden over side * raft. along: "rows" mixes the rows of a column, "columns" the
    columns of a row. The paper's layer is `Block(mixer=RaftMLP(side, along="rows"))`, then
    `Block(mixer=RaftMLP(side, along="columns"), channel=MLP())`. Without biases.
    """

    side: Any = 14
    raft: Any = 2
    ratio: Any = 2
    along: Any = "rows"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "a raft is a range of the stream", "raft": "a channel of the stream"}
    source: ClassVar[Source] = Source("RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?", 2021,
                                      options=("S323",))

    def check(self, width: int, where: str) -> None:
        require_whole("side", self.side, where)
        require_whole("raft", self.raft, where)
        require_divisor("raft", self.raft, "width", width, where)
        check_ratio(self.ratio, where)
        if self.along not in DIRECTIONS:
            raise ValueError(f"{unknown('along', self.along, DIRECTIONS)} (at {where})")

    def _hidden(self) -> int:
        return int(max(round(self.ratio * self.side * self.raft), 1))

    def axes(self, width: int) -> dict[str, Param]:
        f, places, raft = axis("hidden", self._hidden()), axis("places", self.side, "spread"), axis("raft", self.raft)
        return {"up": param(f, places, raft), "down": param(places, raft, f, init=Init("last"))}

    def build(self, width: int) -> nn.Module:
        return RaftMixing(self.side, self.raft, self._hidden(), self.along)

    def macs(self, width: int, length: Length) -> float:
        """Both products of all rafts of all lines, which have `side` places whatever the grid's."""
        rows, columns = grid_of(length)
        lines = columns if self.along == "rows" else rows
        return float(2 * lines * width // self.raft * math.prod((self.side, self.raft, self._hidden())))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
