"""A full two-dimensional convolution between an activation and a norm.

Legend: B batch, H and W rows and columns of tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .spatial import as_grid, require_odd

__all__ = ["Conv2d", "ConvolutionUnit"]

ACTIVATIONS = ("relu", "gelu", "silu")


class ConvolutionUnit(nn.Module):
    """`norm(conv(activation(x)))` with zeros outside the grid; activation and norm may be missing."""

    def __init__(self, width: int, kernel: int, activation: str | None, norm: bool, folded: bool = False):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(width, width, kernel, kernel))
        shift: Any = ChannelShift(width) if folded else BatchNormalisation(width)
        self.norm = shift if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        if self.activation == "relu":
            x_BDHW = F.relu(x_BDHW)
        elif self.activation == "gelu":
            x_BDHW = F.gelu(x_BDHW)
        elif self.activation == "silu":
            x_BDHW = F.silu(x_BDHW)
        y_BDHW = F.conv2d(x_BDHW, self.weight, padding=self.weight.shape[-1] // 2)
        y = y_BDHW.permute(0, 2, 3, 1).reshape(x.shape)
        if self.norm is not None:
            y = self.norm(y)
        return y


@dataclass(frozen=True)
class Conv2d(Operator):
    """Activation, convolution, batch norm: the operation `nor_conv` of NAS-Bench-201 (Dong and Yang, 2020).

    kernel: side of the square kernel, odd; a smaller kernel is the middle of a larger one. activation: "relu",
    "gelu", "silu" or None. norm: whether batch norm follows; folded: whether it is in the weights, all but its shift. A
    sequence is a grid of one column.
    """

    kernel: Any = 3
    activation: Any = "relu"
    norm: Any = True
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
                                      2020)

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        """Without a norm there is nothing that shifts."""
        return not self.norm

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where}); None for none")
        if self.folded and not self.norm:
            raise ValueError(f"a norm is folded where there is one at {where}: got norm=False with folded=True; leave one "
                             "out")

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        declared = {"weight": param(d, d, axis("tap_rows", self.kernel, "centre"),
                                    axis("tap_columns", self.kernel, "centre"))}
        if self.norm:
            declared |= batch_norm_axes("norm", d, self.folded)
        return declared

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"norm": "weight"} if self.norm else {}

    def build(self, width: int) -> nn.Module:
        return ConvolutionUnit(width, self.kernel, self.activation, bool(self.norm), bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """Every tap at every place, taps on the zeros outside included, as they are executed."""
        return float(tokens_of(length) * (width * self.kernel) ** 2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
