"""The residual branch of ConvNeXt, with its one norm inside.

Legend: B batch, H and W rows and columns of tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .depthwise_conv2d import DepthwiseConvolution2d, square_taps
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size
from .spatial import require_odd

__all__ = ["ConvNeXtBranch", "ConvNeXtUnit"]


class ConvNeXtBranch(nn.Module):
    """`down(gelu(up(norm(conv(x)))))`, scaled per channel when there is a layer scale."""

    def __init__(self, width: int, kernel: int, hidden: int, scaled: bool):
        super().__init__()
        self.conv = DepthwiseConvolution2d(width, kernel)
        self.norm = LayerNormalisation(width, eps=1e-6)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.scale = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(self.norm(self.conv(x)))))
        return y if self.scale is None else y * self.scale


@dataclass(frozen=True)
class ConvNeXtUnit(Operator):
    """A ConvNet for the 2020s (Liu et al., 2022): `Block(mixer=ConvNeXtUnit(), norm=NoNorm())` is the paper's block
    without its biases.

    kernel: side of the depthwise filter, odd. ratio: hidden size over width. layer_scale: where the gain per channel
    starts (1e-6 in the paper, whose networks train for long); None for no gain.
    """

    kernel: Any = 7
    ratio: Any = 4
    layer_scale: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("A ConvNet for the 2020s", 2022, systems=("S022",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        check_ratio(self.ratio, where)
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale must be positive at {where}: got {self.layer_scale!r}; use 1e-6, or None "
                             "for no gain per channel")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        norm = {f"norm.{name}": declared for name, declared in LayerNorm().axes(width).items()}
        scale = {"scale": param(d, share="own", init=Init("constant", low=self.layer_scale))}
        return {"conv.taps": square_taps(d, self.kernel), **norm, "up.weight": param(f, d),
                "down.weight": param(d, f), **(scale if self.layer_scale is not None else {})}

    def build(self, width: int) -> nn.Module:
        return ConvNeXtBranch(width, self.kernel, hidden_size(self.ratio, width), self.layer_scale is not None)

    def macs(self, width: int, length: Length) -> float:
        """The filter at every place, taps outside the grid included, and both matrices."""
        return float(tokens_of(length) * (width * self.kernel**2 + self.matrix_numel(width)))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
