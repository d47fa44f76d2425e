"""A feed-forward layer whose activations are learned ratios of polynomials, one per group of channels.

Legend: B batch, T tokens, D width, F hidden, C channels (D or F), G groups, E entries of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole
from .mlp import check_ratio, hidden_size

__all__ = ["GRKAN", "RationalFeedForward", "rational"]

# Least-squares fits of the orders 5 and 4 to x and to x sigmoid(x) on [-3, 3], from the paper's published code.
IDENTITY = ((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
SWISH = ((3.054879741161051e-07, 0.5000007853744493, 0.24999783422824703, 0.05326628273219478, 0.005803034571292244,
          0.0002751961022402342),
         (-4.111554955950634e-06, 0.10652899335007572, -1.2690007399796238e-06, 0.0005502331264140556))
SWISH_GAIN = 0.3557755 ** -0.5            # of a standard normal input: E[swish(x)^2] = 0.3557755


def rational(x_BTC: Tensor, numerator: Tensor, denominator_GN: Tensor) -> Tensor:
    """(a_0 + a_1 x + ... + a_m x^m) / (1 + |b_1 x + ... + b_n x^n|), with b of the channel's group: no pole.

    In float32 at least, since fifth powers leave half precision at 9.
    """
    dtype = torch.promote_types(x_BTC.dtype, torch.float32)
    x_BTGE = torch.unflatten(x_BTC.to(dtype), -1, (len(denominator_GN), -1))
    numerator, denominator_GN = numerator.to(dtype), denominator_GN.to(dtype)
    above_BTGE, below_BTGE = numerator[-1].expand_as(x_BTGE), torch.zeros_like(x_BTGE)
    for a in numerator[:-1].flip(0).unbind():
        above_BTGE = above_BTGE * x_BTGE + a
    for b_G in denominator_GN.flip(1).unbind(1):
        below_BTGE = (below_BTGE + b_G[:, None]) * x_BTGE
    return (above_BTGE / (1 + below_BTGE.abs())).flatten(-2).to(x_BTC.dtype)


class RationalFeedForward(nn.Module):
    """`down(phi(up(psi(x))))`, phi and psi being rational functions."""

    def __init__(self, width: int, hidden: int, groups: int):
        super().__init__()
        self.up_numerator = nn.Parameter(torch.empty(6))
        self.up_denominator = nn.Parameter(torch.empty(groups, 4))
        self.up = nn.Linear(width, hidden)
        self.down_numerator = nn.Parameter(torch.empty(6))
        self.down_denominator = nn.Parameter(torch.empty(groups, 4))
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(rational(x_BTD, self.up_numerator, self.up_denominator))
        y_BTD: Tensor = self.down(rational(h_BTF, self.down_numerator, self.down_denominator))
        return y_BTD


@dataclass(frozen=True)
class GRKAN(Operator):
    """Kolmogorov-Arnold Transformer (Yang and Wang, 2024): group-rational units in place of a feed-forward layer's
    activation, one before each matrix.

    ratio: hidden size over width, rounded up to a multiple of 8. groups: of channels that share a function, in both.
    Orders are the paper's, 5 over 4. As in its published code all groups share a numerator, and each has a denominator.
    The first function starts as the identity, the second as swish, and the matrix behind it with the gain that keeps the
    variance.
    """

    ratio: Any = 4
    groups: Any = 8
    kind: ClassVar[str] = "channel"
    fixed: ClassVar[Mapping[str, str]] = {
        "width": "channels are in groups", "width_groups": "groups follow one another in the width",
        "numerator": "a power of the input", "denominator": "a power of the input"}
    source: ClassVar[Source] = Source("Kolmogorov-Arnold Transformer", 2024, systems=("S288",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        require_whole("groups", self.groups, where)
        require_divisor("groups", self.groups, "width", width, where)
        require_divisor("groups", self.groups, "the hidden size", hidden_size(self.ratio, width), where)

    def axes(self, width: int) -> dict[str, Param]:
        d, above, below = axis("width", width), axis("numerator", 6), axis("denominator", 4)
        groups = axis("hidden_groups", self.groups)
        f = groups * axis("entries", hidden_size(self.ratio, width) // self.groups)

        def coefficients(*dims: Any, values: tuple[float, ...]) -> Param:
            return param(*dims, share="own", init=Init("values", values=values))

        return {"up_numerator": coefficients(above, values=IDENTITY[0]),
                "up_denominator": coefficients(axis("width_groups", self.groups), below, values=IDENTITY[1]),
                "up.weight": param(f, d), "up.bias": param(f, init="zeros"),
                "down_numerator": coefficients(above, values=SWISH[0]),
                "down_denominator": coefficients(groups, below, values=SWISH[1]),
                "down.weight": param(d, f, init=Init("linear", gain=SWISH_GAIN)), "down.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return RationalFeedForward(width, hidden_size(self.ratio, width), self.groups)
