"""A ghost bottleneck that changes the width or the resolution.

Legend: B batch, H and W rows and columns of tokens, D width in, E width out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.batchnorm import BatchNormalisation, batch_norm_axes
from ..operators.depthwise_conv2d import filtered, square_taps
from ..operators.ghost import GhostBranch, branch_axes, branch_macs, check_ghost, hidden_channels, in_fours
from ..operators.spatial import as_grid, require_odd, shaped_like
from .merging import Merging

__all__ = ["GhostTransition", "ShortcutAndGhosts", "ThinnedGrid"]


class ThinnedGrid(nn.Module):
    """One filter per channel at every `stride`-th place, and a norm."""

    def __init__(self, channels: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.taps = nn.Parameter(torch.empty(channels, kernel, kernel))
        self.norm = BatchNormalisation(channels)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y_BHWD: Tensor = self.norm(filtered(x_BHWD, self.taps, self.stride))
        return y_BHWD


class ShortcutAndGhosts(nn.Module):
    """`norm(project(thin(x))) + branch(x)`."""

    def __init__(self, width: int, out_width: int, thin: nn.Module, branch: nn.Module):
        super().__init__()
        self.thin, self.branch = thin, branch
        self.project = nn.Linear(width, out_width, bias=False)
        self.norm = BatchNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        y_BHWE = self.norm(self.project(self.thin(x_BHWD))) + self.branch(x_BHWD)
        return shaped_like(x, y_BHWE)


@dataclass(frozen=True)
class GhostTransition(Merging):
    """GhostNetV2 (Tang et al., 2022): the bottleneck with which a stage begins, its shortcut a filter and a projection.

    An item of a body. expand, gate, squeeze: as of `GhostUnit`, hidden channels over the width that comes in. kernel: side of
    the cheap filters; thin: of the filters at stride `stride`, odd. At stride 1 it only changes the width, and only the
    shortcut has a filter.
    """

    width: Any = None
    stride: Any = 2
    expand: Any = 3
    kernel: Any = 3
    gate: Any = 5
    squeeze: Any = False
    thin: Any = 3
    fixed: ClassVar[Mapping[str, str]] = {"stage_width": "a channel is followed by its ghost"}
    source: ClassVar[Source] = Source("GhostNetV2: Enhance Cheap Operation with Long-Range Attention", 2022,
                                      options=("S329",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        check_ghost(self, where)
        require_odd("thin", self.thin, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, out, hidden = axis("width", width), axis("stage_width", self.width or width), hidden_channels(width, self)
        between = {} if self.stride == 1 else {"branch.between.taps": square_taps(hidden, self.thin),
                                               **batch_norm_axes("branch.between.norm", hidden)}
        return {"thin.taps": square_taps(d, self.thin), **batch_norm_axes("thin.norm", d), "project.weight": param(out, d),
                **batch_norm_axes("norm", out), **between, **branch_axes("branch.", width, out.size, self)}

    def build(self, width: int) -> nn.Module:
        out, hidden = self.width or width, hidden_channels(width, self).size
        between = None if self.stride == 1 else ThinnedGrid(hidden, self.thin, self.stride)
        squeezed = in_fours(hidden / 4) if self.squeeze else 0
        branch = GhostBranch(width, out, hidden, self.kernel, self.gate or 0, squeezed, between)
        return ShortcutAndGhosts(width, out, ThinnedGrid(width, self.thin, self.stride), branch)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Branch, shortcut and the filters at the places that are left."""
        out, after = self.out(width, length)
        filters = width + (hidden_channels(width, self).size if self.stride > 1 else 0)
        shortcut = tokens_of(after) * (filters * self.thin**2 + width * out)
        return float(branch_macs(width, out, self, length, after) + shortcut)
