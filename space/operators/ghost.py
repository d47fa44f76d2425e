"""Ghost features: half of the channels are computed, the other half are cheap filters of these.

Legend: B batch, H and W rows and columns of tokens, D width, C computed channels, E hidden channels (2 C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .depthwise_conv2d import GridFilters, square_taps
from .dfc_attention import LongRangeGate, gate_axes, gate_folds, gate_macs
from .mlp import check_ratio
from .spatial import as_grid, require_odd
from .squeeze_excite import ChannelWeights, squeeze_axes

__all__ = ["GhostBranch", "GhostFeatures", "GhostUnit", "branch_axes", "branch_macs", "check_ghost", "in_fours"]


class GhostFeatures(nn.Module):
    """Channel 2 i is a projection of the input, channel 2 i + 1 its ghost, a filter of channel 2 i."""

    def __init__(self, width: int, channels: int, kernel: int, rectified: bool, folded: bool = False):
        super().__init__()
        self.channels, self.rectified, half = channels, rectified, -(-channels // 2)
        self.primary = nn.Linear(width, half, bias=False)
        self.primary_norm: Any = ChannelShift(half) if folded else BatchNormalisation(half)
        self.cheap = GridFilters(half, kernel)
        self.cheap_norm: Any = ChannelShift(half) if folded else BatchNormalisation(half)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        first_BHWC = self.primary_norm(self.primary(x_BHWD))
        first_BHWC = F.relu(first_BHWC) if self.rectified else first_BHWC
        ghost_BHWC = self.cheap_norm(self.cheap(first_BHWC))
        ghost_BHWC = F.relu(ghost_BHWC) if self.rectified else ghost_BHWC
        return torch.stack([first_BHWC, ghost_BHWC], -1).flatten(-2)[..., :self.channels]


class GhostBranch(nn.Module):
    """Expanding ghost features times their gate, thinned out by `between`, weighed, and projecting ghost features."""

    def __init__(self, width: int, out_width: int, hidden: int, kernel: int, gate: int, squeezed: int,
                 between: nn.Module | None = None, folded: bool = False):
        super().__init__()
        self.expand = GhostFeatures(width, hidden, kernel, True, folded)
        self.gate = LongRangeGate(width, hidden, gate, folded) if gate else None
        self.between = between
        self.weigh = ChannelWeights(hidden, squeezed, "relu", "hard") if squeezed else None
        self.project = GhostFeatures(hidden, out_width, kernel, False, folded)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        h_BHWE = self.expand(x_BHWD)
        if self.gate is not None:
            h_BHWE = h_BHWE * self.gate(x_BHWD)
        if self.between is not None:
            h_BHWE = self.between(h_BHWE)
        if self.weigh is not None:
            h_BHWE = self.weigh(h_BHWE)
        y_BHWD: Tensor = self.project(h_BHWE)
        return y_BHWD.reshape(*y_BHWD.shape[:x.ndim - 1], -1)            # a sequence is a grid of one column


def in_fours(size: float) -> int:
    """The nearest multiple of 4, at least 4, at most a tenth below."""
    near = max(4, int(size + 2) // 4 * 4)
    return near + 4 if near < 0.9 * size else near


def ghost_axes(place: str, width: Axis | Dim, channels: Axis, kernel: int, folded: Any = False) -> dict[str, Param]:
    """The parameters of `GhostFeatures` whose computed channels are `channels`."""
    return {f"{place}.primary.weight": param(channels, width), f"{place}.cheap.taps": square_taps(channels, kernel),
            **batch_norm_axes(f"{place}.primary_norm", channels, folded),
            **batch_norm_axes(f"{place}.cheap_norm", channels, folded)}


def hidden_channels(width: int, config: Any) -> Dim:
    """The channels of the expanding ghost features, each followed by its ghost."""
    return axis("features", in_fours(config.expand * width) // 2) * axis("ghost", 2)


def branch_axes(place: str, width: int, out_width: int, config: Any) -> dict[str, Param]:
    """The parameters of `GhostBranch` between two widths, without those of what stands between."""
    d, hidden, folded = axis("width", width), hidden_channels(width, config), getattr(config, "folded", False)
    features, out = axis("features", hidden.size // 2), axis("pairs", -(-out_width // 2))
    gate = gate_axes(f"{place}gate.", d, hidden, config.gate, folded) if config.gate else {}
    weigh = squeeze_axes(f"{place}weigh.", hidden, in_fours(hidden.size / 4)) if config.squeeze else {}
    return {**ghost_axes(f"{place}expand", d, features, config.kernel, folded), **gate, **weigh,
            **ghost_axes(f"{place}project", hidden, out, config.kernel, folded)}


def branch_macs(width: int, out_width: int, config: Any, length: Length, after: Length) -> float:
    """Of `GhostBranch` that reads one grid and gives another, without what stands between."""
    hidden, out, taps = hidden_channels(width, config).size, -(-out_width // 2), config.kernel**2
    gate = gate_macs(width, hidden, config.gate, length) if config.gate else 0
    weigh = 2 * hidden * in_fours(hidden / 4) if config.squeeze else 0
    ghosts = tokens_of(length) * hidden // 2 * (width + taps) + tokens_of(after) * out * (hidden + taps)
    return float(ghosts + gate + weigh)


@dataclass(frozen=True)
class GhostUnit(Operator):
    """GhostNetV2 (Tang et al., 2022) as a residual branch: `Block(mixer=GhostUnit(), norm=NoNorm())` is its bottleneck at
    stride 1; with another width or a stride see `GhostTransition`.

    expand: hidden channels over width, in multiples of 4. kernel: side of the cheap filters, odd. gate: taps of the gate on
    the hidden channels, odd; None for none: GhostNet (Han et al., 2020). squeeze: whether hidden channels are weighed by
    what the grid holds. folded: whether batch norms are in the weights before them, all but their shift. A channel and its
    ghost are neighbours here (half the width apart in the paper), so that narrower layers are parts of wider ones.
    """

    expand: Any = 3
    kernel: Any = 3
    gate: Any = 5
    squeeze: Any = False
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "a channel is followed by its ghost", "ghost": "a channel, then its ghost",
                                          "pairs": "two channels of the stream"}
    source: ClassVar[Source] = Source("GhostNetV2: Enhance Cheap Operation with Long-Range Attention", 2022,
                                      options=("S329",))

    def check(self, width: int, where: str) -> None:
        check_ghost(self, where)

    def axes(self, width: int) -> dict[str, Param]:
        return branch_axes("", width, width, self)

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        ghosts = {f"{place}.{norm}_norm": f"{place}.{weight}" for place in ("expand", "project")
                  for norm, weight in (("primary", "primary.weight"), ("cheap", "cheap.taps"))}
        return ghosts | (gate_folds("gate.") if self.gate else {})

    def build(self, width: int) -> nn.Module:
        hidden = hidden_channels(width, self).size
        squeezed = in_fours(hidden / 4) if self.squeeze else 0
        return GhostBranch(width, width, hidden, self.kernel, self.gate or 0, squeezed, folded=bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        return branch_macs(width, width, self, length, length)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)


def check_ghost(config: Any, where: str) -> None:
    """Raise ValueError unless the branch can be built."""
    check_ratio(config.expand, where)
    require_odd("kernel", config.kernel, where)
    if config.gate is not None:
        require_odd("gate", config.gate, where)
