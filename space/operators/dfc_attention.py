"""A gate with a long reach: decoupled fully connected attention, as two long filters on a coarser grid.

Legend: B batch, H and W rows and columns of tokens, D width, G gated channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, axis, param
from ..operator import Length, Operator, Source
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .pooling import enlarged, mean_pooled
from .short_conv import tap_init
from .spatial import as_grid, grid_of, require_odd

__all__ = ["DFCAttention", "GatedGrid", "LongRangeGate", "gate_axes", "gate_folds", "gate_macs"]


class LongRangeGate(nn.Module):
    """Numbers between 0 and 1 for every place: squares of 2 x 2 tokens projected, filtered along their row, then along their
    column, one filter per channel, with a norm at each place."""

    def __init__(self, width: int, channels: int, kernel: int, folded: bool = False):
        super().__init__()
        self.project = nn.Linear(width, channels, bias=False)
        self.project_norm: Any = ChannelShift(channels) if folded else BatchNormalisation(channels)
        self.across = nn.Parameter(torch.empty(channels, kernel))
        self.across_norm: Any = ChannelShift(channels) if folded else BatchNormalisation(channels)
        self.along = nn.Parameter(torch.empty(channels, kernel))
        self.along_norm: Any = ChannelShift(channels) if folded else BatchNormalisation(channels)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        g_BHWG = self.project_norm(self.project(mean_pooled(x_BHWD, 2)))
        (channels, kernel), g_BGHW = self.across.shape, g_BHWG.permute(0, 3, 1, 2)
        g_BGHW = F.conv2d(g_BGHW, self.across[:, None, None], padding=(0, kernel // 2), groups=channels)
        g_BGHW = self.across_norm(g_BGHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        g_BGHW = F.conv2d(g_BGHW, self.along[:, None, :, None], padding=(kernel // 2, 0), groups=channels)
        g_BHWG = torch.sigmoid(self.along_norm(g_BGHW.permute(0, 2, 3, 1)))
        return enlarged(g_BHWG, 2, x_BHWD.shape[1], x_BHWD.shape[2])


def gate_axes(place: str, width: Axis, channels: Axis | Dim, kernel: int, folded: Any = False) -> dict[str, Param]:
    """The parameters of `LongRangeGate` under `place`."""
    taps = param(channels, axis("gate_taps", kernel, "centre"), init=tap_init(kernel))
    norms = {name: part for norm in ("project_norm", "across_norm", "along_norm")
             for name, part in batch_norm_axes(f"{place}{norm}", channels, folded).items()}
    return {f"{place}project.weight": param(channels, width), f"{place}across": taps, f"{place}along": taps, **norms}


def gate_folds(place: str) -> dict[str, str]:
    """The weights before every batch norm of `LongRangeGate` under `place`."""
    return {f"{place}project_norm": f"{place}project.weight", f"{place}across_norm": f"{place}across",
            f"{place}along_norm": f"{place}along"}


def gate_macs(width: int, channels: int, kernel: int, length: Length) -> int:
    """Projection and both filters on the coarser grid."""
    return math.prod(-(-size // 2) for size in grid_of(length)) * channels * (width + 2 * kernel)


class GatedGrid(nn.Module):
    """`x * gate(x)`."""

    def __init__(self, width: int, kernel: int, folded: bool = False):
        super().__init__()
        self.gate = LongRangeGate(width, width, kernel, folded)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        y_BHWD: Tensor = x_BHWD * self.gate(x_BHWD)
        return y_BHWD.reshape(x.shape)


@dataclass(frozen=True)
class DFCAttention(Operator):
    """The attention of GhostNetV2 (Tang et al., 2022) as an operator of its own: the grid times its gate; in place see
    `GhostUnit`.

    kernel: taps of both filters, odd. Where a side is odd its last squares are smaller (the authors' code leaves those
    tokens out and stretches the rest). folded: whether batch norms are in the weights before them, all but their shift.
    """

    kernel: Any = 5
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("GhostNetV2: Enhance Cheap Operation with Long-Range Attention", 2022,
                                      options=("S329",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        return gate_axes("gate.", d, d, self.kernel, self.folded)

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return gate_folds("gate.")

    def build(self, width: int) -> nn.Module:
        return GatedGrid(width, self.kernel, bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        return float(gate_macs(width, width, self.kernel, length))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
