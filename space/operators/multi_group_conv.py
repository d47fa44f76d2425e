"""Convolutions of several groups and sizes side by side, which are one convolution when training is over.

Legend: B batch, H and W rows and columns of tokens, D width.
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
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, batch_norm_axes
from .checks import is_whole, require_divisor
from .conv2d import ACTIVATIONS
from .spatial import as_grid, require_odd

__all__ = ["FoldedConvolution", "MultiGroupConv", "MultiGroupConvolution", "activated"]


def activated(x: Tensor, activation: str | None) -> Tensor:
    """One of the activations of `Conv2d`, or the input as it is."""
    if activation == "relu":
        return F.relu(x)
    if activation == "gelu":
        return F.gelu(x)
    return F.silu(x) if activation == "silu" else x


class MultiGroupConvolution(nn.Module):
    """`activation(sum over branches of norm_i(conv_i(x)) + norm(x))`, zeros outside the grid; branches: (kernel, groups)."""

    def __init__(self, width: int, branches: tuple[tuple[int, int], ...], identity: bool, activation: str | None):
        super().__init__()
        self.groups, self.activation = [groups for _, groups in branches], activation
        self.weights = nn.ParameterList(torch.empty(width, width // groups, kernel, kernel) for kernel, groups in branches)
        self.norms = nn.ModuleList(BatchNormalisation(width) for _ in branches)
        self.norm = BatchNormalisation(width) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        total = torch.zeros_like(x) if self.norm is None else self.norm(x)
        for weight, norm, groups in zip(self.weights, self.norms, self.groups, strict=True):
            y_BDHW = F.conv2d(x_BDHW, weight, padding=weight.shape[-1] // 2, groups=groups)
            total = total + norm(y_BDHW.permute(0, 2, 3, 1).reshape(x.shape))
        return activated(total, self.activation)


class FoldedConvolution(nn.Module):
    """`activation(conv(x) + bias)` with zeros outside the grid."""

    def __init__(self, width: int, kernel: int, groups: int, activation: str | None):
        super().__init__()
        self.groups, self.activation = groups, activation
        self.weight = nn.Parameter(torch.empty(width, width // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        y_BDHW = F.conv2d(x_BDHW, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        return activated(y_BDHW.permute(0, 2, 3, 1).reshape(x.shape), self.activation)


@dataclass(frozen=True)
class MultiGroupConv(Operator):
    """The convolutional multi-group re-parameterisation of FMViT (Tan et al., 2024): grouped convolutions of other groups and
    sizes side by side, each with its batch norm, and a batch norm of the input.

    branches: (kernel, groups) of each; kernels are odd and groups divide width. identity: whether the input has a branch.
    activation: after the sum: "relu", "gelu", "silu" or None. folded: one convolution with a bias in their place, of the
    largest kernel and as many groups as all numbers of groups have as a common divisor: `bp.folded` makes a trained network
    one of these, which multiplies less where the branches are alike in size, and more where a small kernel of few groups
    stands beside a large one of many. A sequence is a grid of one column.

    Two of these with an activation between are the paper's channel mixer, `(..., folded=False)` of 1 x 1 kernels its
    projections; beside attention to averaged tokens they are its mixing of high and low frequencies:
    `Parallel((PooledAttention(), MultiGroupConv()), merge="concat")`. Its attention with re-parameterised projections and the
    pyramid around are left out.
    """

    branches: Any = ((3, 4), (1, 2))
    identity: Any = True
    activation: Any = "relu"
    folded: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("FMViT: A multiple-frequency mixing Vision Transformer", 2024, options=("S252",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        inputs = ["folded_into", *(f"branch_{number}_into" for number in range(len(self.branches)))]
        return dict.fromkeys(("width", *inputs), "channels side by side are a group")

    @property
    def kernel(self) -> int:
        """The side of the largest kernel."""
        return int(max(kernel for kernel, _ in self.branches))

    @property
    def groups(self) -> int:
        """Groups that no branch mixes."""
        return math.gcd(*(groups for _, groups in self.branches))

    def check(self, width: int, where: str) -> None:
        pairs = self.branches if isinstance(self.branches, tuple) else ()
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 and all(map(is_whole, pair)) for pair in pairs):
            raise ValueError(f"branches are pairs of a kernel and a number of groups at {where}: got {self.branches!r}; use "
                             "((3, 4), (1, 2))")
        for kernel, groups in pairs:
            require_odd("kernel", kernel, where)
            require_divisor("groups", groups, "width", width, where)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where}); None for none")

    def axes(self, width: int) -> dict[str, Param]:
        if self.folded:
            return {"weight": self._taps("folded", width, self.kernel, self.groups),
                    "bias": param(axis("width", width), init="zeros")}
        found: dict[str, Param] = {}
        for number, (kernel, groups) in enumerate(self.branches):
            found |= {f"weights.{number}": self._taps(f"branch_{number}", width, kernel, groups),
                      **batch_norm_axes(f"norms.{number}", axis("width", width))}
        return found | (batch_norm_axes("norm", axis("width", width)) if self.identity else {})

    def _taps(self, name: str, width: int, kernel: int, groups: int) -> Param:
        """Every channel by those of its group. Another number of groups has weights of its own."""
        into = axis(f"{name}_into", width // groups)
        rows, columns = (axis(f"{name}_{way}", kernel, "centre") for way in ("rows", "columns"))
        return param(axis("width", width), into, rows, columns, init=Init("linear"))

    def build(self, width: int) -> nn.Module:
        if self.folded:
            return FoldedConvolution(width, self.kernel, self.groups, self.activation)
        return MultiGroupConvolution(width, self.branches, bool(self.identity), self.activation)

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        """Every tap at every place, taps on the zeros outside included, as they are executed."""
        pairs = ((self.kernel, self.groups),) if self.folded else self.branches
        return float(tokens_of(length) * sum(width * (width // groups) * kernel**2 for kernel, groups in pairs))

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
