"""Hyena on a grid: long two-dimensional convolutions between element-wise gates.

Legend: B batch, H and W rows and columns of tokens, D width, N long filters (order - 1), Q directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...kernels.long_conv.grid import fft_grid_conv
from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import filtered, square_taps
from .implicit_filter import ImplicitFilter, filter_axes, tap_macs
from .spatial import as_grid, grid_of, require_odd

__all__ = ["GridHyena", "HyenaND"]

FLIPS = ((), (1, 2), (1,), (2,))


class GridHyena(nn.Module):
    """`v <- sum over directions of mix * flip(h * flip(x_n v))` for each filter, then `x_0 v`.

    One projection and a depthwise convolution give v, x_0, x_1, ...; the first direction looks up and left, the second
    down and right, then the other two corners. Every direction has filters of its own.
    """

    def __init__(self, width: int, order: int, directions: int, filter_dim: int, bands: int, conv: int, reach: float):
        super().__init__()
        self.width, self.filters, self.flips = width, order - 1, FLIPS[:directions]
        self.input = nn.Linear(width, (order + 1) * width, bias=False)
        self.taps = nn.Parameter(torch.empty((order + 1) * width, conv, conv))
        self.filter = ImplicitFilter(width, directions * (order - 1), filter_dim, bands, reach, 2)
        self.mix = nn.Parameter(torch.empty(directions))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        v_BHWD, out_gate_BHWD, *gates = torch.split(filtered(self.input(x_BHWD), self.taps), self.width, dim=-1)
        filter_HWQND = self.filter(x_BHWD.shape[1:3]).unflatten(2, (len(self.flips), self.filters))
        for n, gate_BHWD in enumerate(gates):
            gated_BHWD = gate_BHWD * v_BHWD
            v_BHWD = torch.zeros_like(gated_BHWD)
            for q, flip in enumerate(self.flips):
                seen_BHWD = fft_grid_conv(gated_BHWD.flip(flip), filter_HWQND[:, :, q, n])
                v_BHWD = v_BHWD + self.mix[q] * seen_BHWD.flip(flip)
        return self.out(out_gate_BHWD * v_BHWD).view(x.shape)                        # type: ignore[no-any-return]


@dataclass(frozen=True)
class HyenaND(Operator):
    """Hyena N-D: Multi-Dimensional Hyena for Spatial Inductive Bias (Zimerman and Wolf, 2023), on grids.

    order: gates and long convolutions interleaved, `order - 1` long convolutions. directions: 1 as in the paper's basic
    layer, where a place sees what lies above and left of it; 2 or 4 add the opposite and the other corners. filter_dim,
    bands: hidden units and frequencies per axis of the network that gives the filters from both distances. conv: side of
    the depthwise convolution, odd. reach: rows or columns after which a filter has faded, to 5 % in its slowest channel;
    each axis has a rate of its own. A sequence is a grid of one column.

    As in `Hyena`, rates are learned and positions are counted in `reach`, so that every grid size works.
    """

    order: Any = 2
    directions: Any = 4
    filter_dim: Any = 32
    bands: Any = 8
    conv: Any = 3
    reach: Any = 14
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"branches": "each plays another part", "filters": "they run one after the other",
                                          "directions": "each looks another way", "bands": "a band is a frequency",
                                          "ways": "rows and columns"}
    source: ClassVar[Source] = Source("Multi-Dimensional Hyena for Spatial Inductive Bias", 2023, systems=("S300",))

    def check(self, width: int, where: str) -> None:
        require_whole("order", self.order, where, low=2, instead="use DepthwiseConv2d for no long convolution")
        for name in ("filter_dim", "bands", "reach"):
            require_whole(name, getattr(self, name), where)
        require_odd("conv", self.conv, where)
        if self.directions not in (1, 2, 4):
            raise ValueError(f"directions must be 1, 2 or 4 at {where}: got {self.directions!r}; use 4 to look everywhere")

    def axes(self, width: int) -> dict[str, Param]:
        d, channels, q = axis("width", width), axis("channels", width), axis("directions", self.directions)
        branches = axis("branches", self.order + 1) * channels
        filters = filter_axes(channels, q * axis("filters", self.order - 1), self.filter_dim, self.bands, 2)
        return {"input.weight": param(branches, d), "taps": square_taps(branches, self.conv),
                **{f"filter.{name}": part for name, part in filters.items()},
                "mix": param(q, share="own", init=Init("constant", low=self.directions**-0.5)),
                "out.weight": param(d, channels)}

    def build(self, width: int) -> nn.Module:
        return GridHyena(width, self.order, self.directions, self.filter_dim, self.bands, self.conv, float(self.reach))

    def macs(self, width: int, length: Length) -> float:
        """Projections, the depthwise convolution, one tap of the filters per place, and three transforms per filter and
        direction of 2.5 n log2 n operations (n = 4 places), two operations to a multiply-add."""
        rows, columns = grid_of(length)
        token = (self.order + 2) * width * width + (self.order + 1) * width * self.conv**2
        filters = self.directions * (self.order - 1)
        places = 4 * rows * columns
        transforms = 3 * filters * width * 1.25 * places * math.log2(places)
        taps = tap_macs(width, filters, self.filter_dim, self.bands, 2)
        return float(tokens_of(length) * (token + taps) + transforms)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
