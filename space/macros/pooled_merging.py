"""Squares of tokens averaged, then projected.

Legend: B batch, H and W rows and columns of tokens, D width in, E width out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.batchnorm import BatchNormalisation, batch_norm_axes
from ..operators.pooling import mean_pooled
from ..operators.spatial import as_grid, shaped_like
from .merging import Merging

__all__ = ["AveragedTokens", "PooledMerging"]

ACTIVATIONS = ("relu", "gelu", "silu")


class AveragedTokens(nn.Module):
    """`activation(norm(project(mean of every square)))`; the activation may be missing."""

    def __init__(self, width: int, out_width: int, stride: int, activation: str | None):
        super().__init__()
        self.stride, self.activation = stride, activation
        self.project = nn.Linear(width, out_width, bias=False)
        self.norm = BatchNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BHWD = mean_pooled(x_BHWD, self.stride) if self.stride > 1 else x_BHWD
        y_BHWE: Tensor = self.norm(self.project(x_BHWD))
        if self.activation == "relu":
            y_BHWE = F.relu(y_BHWE)
        elif self.activation == "gelu":
            y_BHWE = F.gelu(y_BHWE)
        elif self.activation == "silu":
            y_BHWE = F.silu(y_BHWE)
        return shaped_like(x, y_BHWE)


@dataclass(frozen=True)
class PooledMerging(Merging):
    """The patch embedding of Next-ViT (Li et al., 2022): average pooling, a projection, batch norm.

    An item of a body between blocks of two widths or resolutions; stride 1 changes the width alone. activation: "relu",
    "gelu", "silu", or None as in the paper.
    """

    width: Any = None
    stride: Any = 2
    activation: Any = None
    source: ClassVar[Source] = Source("Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic "
                                      "Industrial Scenarios", 2022, options=("S264",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where}); None for none")

    def axes(self, width: int) -> dict[str, Param]:
        out = axis("stage_width", self.width or width)
        return {"project.weight": param(out, axis("width", width)), **batch_norm_axes("norm", out)}

    def build(self, width: int) -> nn.Module:
        return AveragedTokens(width, self.width or width, self.stride, self.activation)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        out, smaller = self.out(width, length)
        return float(tokens_of(smaller) * out * width)
