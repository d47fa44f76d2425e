"""A stage of HaloNet begins with queries on a coarser grid.

Legend: B batch, H and W rows and columns of tokens, D width in, E width out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.batchnorm import BatchNorm, BatchNormalisation
from ..operators.checks import require_divisor
from ..operators.halo_bottleneck import (
    AttentionBottleneck,
    HaloSizes,
    bottleneck_axes,
    bottleneck_macs,
    check_bottleneck,
)
from ..operators.spatial import as_grid, shaped_like
from .merging import Merging, at_stage_width

__all__ = ["HaloDownsample", "SubsampledQueries"]


class SubsampledQueries(nn.Module):
    """Every `stride`-th token, projected and normalised, plus the bottleneck that these tokens ask for."""

    def __init__(self, stride: int, shortcut: nn.Module, norm: nn.Module, branch: nn.Module):
        super().__init__()
        self.stride, self.shortcut, self.norm, self.branch = stride, shortcut, norm, branch

    def forward(self, x: Tensor) -> Tensor:
        y_BHWE = self.norm(self.shortcut(as_grid(x)[:, ::self.stride, ::self.stride]))
        y: Tensor = shaped_like(x, y_BHWE) + self.branch(x)
        return y


@dataclass(frozen=True)
class HaloDownsample(Merging):
    """Attention downsampling of HaloNet (Vaswani et al., 2021): the first block of a stage, queries every `stride` tokens.

    An item of a body between the blocks of two stages; the stride must divide the block. heads, head_dim, values, block,
    halo, position: as of `HaloBottleneck`. At stride 1 it only changes the width.
    """

    width: Any = None
    heads: Any = 4
    head_dim: Any = 16
    values: Any = 1.0
    block: Any = 8
    halo: Any = 3
    position: Any = "relative"
    stride: Any = 2
    source: ClassVar[Source] = Source("Scaling Local Self-Attention for Parameter Efficient Visual Backbones", 2021,
                                      options=("S390",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        check_bottleneck(self, where)
        require_divisor("stride", self.stride, "block", self.block, where)

    def sizes(self) -> HaloSizes:
        """With the size of a value worked out."""
        return HaloSizes(self.heads, self.head_dim, round(self.values * self.head_dim), self.block, self.halo, self.position,
                         self.stride)

    def axes(self, width: int) -> dict[str, Param]:
        out = axis("stage_width", self.width or width)
        return {"shortcut.weight": param(out, axis("width", width)), **at_stage_width("norm", BatchNorm(), out.size),
                **{f"branch.{name}": part for name, part in bottleneck_axes(width, out, self.sizes()).items()}}

    def build(self, width: int) -> nn.Module:
        out, sizes = self.width or width, self.sizes()
        branch = AttentionBottleneck(width, out, sizes.heads, sizes.head_dim, sizes.value_dim, sizes.block, sizes.halo,
                                     sizes.position, sizes.stride)
        return SubsampledQueries(self.stride, nn.Linear(width, out, bias=False), BatchNormalisation(out), branch)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Every `stride`-th token projected, and the bottleneck."""
        out, smaller = self.out(width, length)
        return float(tokens_of(smaller) * width * out) + bottleneck_macs(width, out, self.sizes(), length)
