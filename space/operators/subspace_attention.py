"""One map of attention over the grid for every group of channels.

Legend: B batch, H and W rows and columns of tokens, D width, G groups, M channels of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source
from .batchnorm import BatchNormalisation, batch_norm_axes
from .checks import require_divisor, require_whole
from .spatial import as_grid

__all__ = ["SubspaceAttention", "SubspaceMaps"]


class SubspaceMaps(nn.Module):
    """`x * softmax over places(relu(norm(point . max3x3(relu(norm(scale * x))))))`, one map for the channels of a group."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.scale = nn.Parameter(torch.empty(width))
        self.norm = BatchNormalisation(width)
        self.point = nn.Parameter(torch.empty(width))
        self.point_norm = BatchNormalisation(groups)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        h_BDHW = F.relu(self.norm(x_BHWD * self.scale)).permute(0, 3, 1, 2)
        h_BHWD = F.max_pool2d(h_BDHW, 3, 1, 1).permute(0, 2, 3, 1) * self.point
        scores_BHWG = F.relu(self.point_norm(torch.unflatten(h_BHWD, -1, (-1, self.groups)).sum(-2)))
        maps_BHWG = scores_BHWG.flatten(1, 2).softmax(1).view(scores_BHWG.shape)
        y_BHWMG: Tensor = torch.unflatten(x_BHWD, -1, (-1, self.groups)) * maps_BHWG[..., None, :]
        return y_BHWMG.reshape(x.shape)


@dataclass(frozen=True)
class SubspaceAttention(Operator):
    """ULSAM (Saini et al., 2020): `Block(mixer=SubspaceAttention(), norm=NoNorm())` is the paper's `A * F + F` in every
    subspace.

    groups: subspaces; 4 or 8 in the paper. Norms and ReLU are those of the authors' code; the formula of the paper leaves
    them out. A group is every groups-th channel (a range in the paper), so that narrower layers are parts of wider ones.
    """

    groups: Any = 4
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"width": "which group a channel is in depends on its place",
                                          "groups": "a group is certain channels of the stream"}
    source: ClassVar[Source] = Source("ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural "
                                      "Networks", 2020, systems=("S339",))

    def check(self, width: int, where: str) -> None:
        require_whole("groups", self.groups, where)
        require_divisor("groups", self.groups, "width", width, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        bound = (self.groups / width) ** 0.5
        return {"scale": param(d, init="ones"), "point": param(d, init=Init("uniform", low=-bound, high=bound)),
                **batch_norm_axes("norm", d), **batch_norm_axes("point_norm", axis("groups", self.groups))}

    def build(self, width: int) -> nn.Module:
        return SubspaceMaps(width, self.groups)

    def macs(self, width: int, length: Length) -> float:
        """None: all of it is element-wise, a scale and a weighted sum of channels included."""
        return 0.0

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
