"""Convolutions as long as the sequence whose filter depends on the sequence.

Legend: B batch, T tokens, D width, N long filters (order - 1), F frequencies.
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
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .implicit_filter import ImplicitFilter, filter_axes, tap_macs
from .short_conv import tap_init
from .spatial import require_odd

__all__ = ["DataDependentConvolution", "Orchid"]

CONDITIONS = ("magnitude", "correlation")


def centred_conv(x_BTD: Tensor, taps_DW: Tensor) -> Tensor:
    """One filter per channel, as many taps before a token as after it; zeros outside."""
    channels, kernel = taps_DW.shape
    return F.conv1d(x_BTD.transpose(1, 2), taps_DW[:, None], padding=kernel // 2, groups=channels).transpose(1, 2)


class DataDependentConvolution(nn.Module):
    """`v <- (h_n + h_n(x)) * (x_n v)` for each filter, then `x_0 v`, plus a long convolution of the input itself.

    Convolutions go around the circle of the T tokens. h is a function of the distance. h(x) comes from the projection of
    v: the magnitude of its spectrum, filtered over time before and over frequency after (type I), or the correlation of
    two filterings of it (type II). Both follow a shift of the sequence.
    """

    def __init__(self, width: int, order: int, condition: str, kernel: int, filter_dim: int, bands: int, conv: int,
                 reach: float):
        super().__init__()
        self.width, self.filters, self.condition = width, order - 1, condition
        self.input = nn.Linear(width, (order + 1) * width, bias=False)
        self.taps = nn.Parameter(torch.empty((order + 1) * width, conv))
        self.first = nn.Parameter(torch.empty((order - 1) * width, kernel))
        self.second = nn.Parameter(torch.empty((order - 1) * width, kernel))
        self.filter = ImplicitFilter(width, order, filter_dim, bands, reach, 1)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        length, dtype = x_BTD.shape[1], torch.promote_types(x_BTD.dtype, torch.float32)
        u_BTM = self.input(x_BTD)
        learned_FND = torch.fft.rfft(self.filter((length,)).to(dtype), dim=0)
        adapted_BFM = self.adapted(u_BTM[..., -self.width:])
        adapted_BFND = adapted_BFM.view(*adapted_BFM.shape[:2], self.filters, self.width)
        out_gate_BTD, *gates, v_BTD = torch.split(centred_conv(u_BTM, self.taps), self.width, dim=-1)
        for n, gate_BTD in enumerate(gates):
            v_BTD = self.convolved(gate_BTD * v_BTD, learned_FND[:, n] + adapted_BFND[:, :, n])
        return self.out(out_gate_BTD * v_BTD + self.convolved(x_BTD, learned_FND[:, -1]))   # type: ignore[no-any-return]

    def adapted(self, u_BTD: Tensor) -> Tensor:
        """The spectrum of h(x) for all filters, [B, F, N * D]."""
        dtype = torch.promote_types(u_BTD.dtype, torch.float32)
        u_BTM = u_BTD.repeat(1, 1, self.filters)
        first_BFM = torch.fft.rfft(centred_conv(u_BTM, self.first).to(dtype), dim=1, norm="ortho")
        if self.condition == "magnitude":
            return centred_conv(first_BFM.abs(), self.second.to(dtype))
        second_BFM = torch.fft.rfft(centred_conv(u_BTM, self.second).to(dtype), dim=1, norm="ortho")
        spectrum_BFM: Tensor = first_BFM.conj() * second_BFM
        return spectrum_BFM

    def convolved(self, x_BTD: Tensor, spectrum_BFD: Tensor) -> Tensor:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        y_BTD: Tensor = torch.fft.irfft(torch.fft.rfft(x_BTD.to(dtype), dim=1) * spectrum_BFD, n=x_BTD.shape[1], dim=1)
        return y_BTD.to(x_BTD.dtype)


@dataclass(frozen=True)
class Orchid(Operator):
    """Orchid: Flexible and Data-Dependent Convolution for Sequence Modeling (Karami and Ghodsi, 2024).

    order: gates and long convolutions interleaved, `order - 1` long convolutions. condition: how the sequence makes its
    filter, "magnitude" (type I) or "correlation" (type II). kernel: taps of the conditioning network's filters, odd.
    filter_dim, bands, reach: of the learned filters, as in `Hyena`. conv: taps of the short convolution, odd.

    Looks both ways, as the paper's models do. The authors' options (cosine transforms, a norm of the spectrum, deeper
    conditioning networks) are not offered.
    """

    order: Any = 2
    condition: Any = "magnitude"
    kernel: Any = 3
    filter_dim: Any = 64
    bands: Any = 8
    conv: Any = 3
    reach: Any = 512
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"branches": "each plays another part", "filters": "they run one after the other",
                                          "static": "they run one after the other", "bands": "a band is a frequency"}
    source: ClassVar[Source] = Source("Orchid: Flexible and Data-Dependent Convolution for Sequence Modeling", 2024,
                                      systems=("S309",))

    def check(self, width: int, where: str) -> None:
        require_whole("order", self.order, where, low=2, instead="use ConformerConv for no long convolution")
        for name in ("filter_dim", "bands", "reach"):
            require_whole(name, getattr(self, name), where)
        for name in ("kernel", "conv"):
            require_odd(name, getattr(self, name), where)
        if self.condition not in CONDITIONS:
            raise ValueError(f"{unknown('condition', self.condition, CONDITIONS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, branches, filters = axis("width", width), axis("branches", self.order + 1), axis("filters", self.order - 1)
        condition = param(filters * d, axis("condition_taps", self.kernel, "centre"), init=tap_init(self.kernel))
        learned = filter_axes(d, axis("static", self.order), self.filter_dim, self.bands, 1)
        return {"input.weight": param(branches * d, d), "out.weight": param(d, d),
                "taps": param(branches * d, axis("taps", self.conv, "centre"), init=tap_init(self.conv)),
                "first": condition, "second": condition,
                **{f"filter.{name}": part for name, part in learned.items()}}

    def build(self, width: int) -> nn.Module:
        return DataDependentConvolution(width, self.order, self.condition, self.kernel, self.filter_dim, self.bands,
                                        self.conv, float(self.reach))

    def macs(self, width: int, length: int) -> float:
        """Projections, filters of a few taps, one tap of the learned filters per token, and all transforms, 2.5 n log2 n
        operations each (n = length), two operations to a multiply-add."""
        filters = self.order - 1
        token = (self.order + 2) * width * width + (self.order + 1) * width * self.conv
        halves = 1.5 if self.condition == "magnitude" else 2.0                # the second filter runs over the spectrum
        adapted = filters * width * self.kernel * halves
        taps = tap_macs(width, self.order, self.filter_dim, self.bands, 1)
        spectra = self.order + filters * (1 if self.condition == "magnitude" else 2) + 2 * self.order
        return float(length * (token + adapted + taps) + spectra * width * 1.25 * length * math.log2(max(length, 2)))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
