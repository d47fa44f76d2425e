"""Filters that are functions of the distance along one or two axes.

Legend: P places (taps of the filter), A axes, E positional features of an axis, F hidden units, N filters, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Init, Param, axis, param

__all__ = ["ImplicitFilter", "filter_axes", "tap_macs"]


class ImplicitFilter(nn.Module):
    """A network of sines of the distances times a window `exp(-a |t| / reach)` per axis, plus a weight at distance 0.

    Filters are scaled to unit energy by their windows, so that neither reach nor length changes the size of the output.
    """

    def __init__(self, width: int, filters: int, hidden: int, bands: int, reach: float, axes: int):
        super().__init__()
        self.width, self.filters, self.bands, self.reach, self.axes = width, filters, bands, reach, axes
        self.sine_0 = nn.Linear(axes * (1 + 2 * bands), hidden)
        self.sine_1 = nn.Linear(hidden, hidden)
        self.sine_2 = nn.Linear(hidden, hidden)
        self.frequency = nn.Parameter(torch.empty(hidden))
        self.response = nn.Linear(hidden, filters * width, bias=False)
        self.log_rate = nn.Parameter(torch.empty(axes, filters, width))
        self.skip = nn.Parameter(torch.empty(filters, width))

    def forward(self, sizes: tuple[int, ...]) -> Tensor:
        """Taps at the distances 0, 1, ... of every axis, [*sizes, N, D], in float32 at least: positions above 256 and
        sines of large angles have no meaning in half precision."""
        device, dtype = self.skip.device, torch.promote_types(self.skip.dtype, torch.float32)
        lines = [torch.arange(size, device=device, dtype=dtype) / self.reach for size in sizes]
        time_PA = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)
        frequency_G = 2 * math.pi * torch.arange(1, self.bands + 1, device=device, dtype=dtype)
        angle_PAG = time_PA[..., None] * frequency_G
        h_PF = torch.cat([time_PA[..., None], angle_PAG.cos(), angle_PAG.sin()], dim=-1).flatten(1)
        for layer in (self.sine_0, self.sine_1, self.sine_2):
            h_PF = torch.sin(self.frequency * F.linear(h_PF, layer.weight.to(dtype), layer.bias.to(dtype)))
        h_PND = F.linear(h_PF, self.response.weight.to(dtype)).view(-1, self.filters, self.width)
        rate_AND = self.log_rate.to(dtype).exp()
        window_PND = torch.exp(-(time_PA @ rate_AND.flatten(1))).view_as(h_PND)
        scale_ND = torch.sqrt(2 * rate_AND / self.reach).prod(0)
        taps_PND = h_PND * window_PND * scale_ND
        return torch.cat([taps_PND[:1] + self.skip, taps_PND[1:]]).view(*sizes, self.filters, self.width)


def filter_axes(channels: Axis | Dim, filters: Axis | Dim, hidden: int, bands: int, axes: int) -> dict[str, Param]:
    """The parameters of an `ImplicitFilter`."""
    f, b, ways = axis("filter_dim", hidden), axis("bands", bands), axis("ways", axes)
    phase = Init("uniform", low=-0.25, high=0.25)
    declared = {"frequency": param(f, init=Init("constant", low=10.0)), "response.weight": param(filters * channels, f),
                "log_rate": param(ways, filters, channels, init=Init("uniform", low=math.log(3.0), high=math.log(15.0))),
                "skip": param(filters, channels, init=Init("normal", gain=1.0)),
                "sine_0.weight": param(f, ways * (axis("time", 1) + b + b))}
    for layer in range(3):
        declared[f"sine_{layer}.bias"] = param(f, init=phase)
        if layer:
            declared[f"sine_{layer}.weight"] = param(f, f)
    return declared


def tap_macs(width: int, filters: int, hidden: int, bands: int, axes: int) -> int:
    """Multiply-adds of one tap of every filter: the network, and the windows' exponents."""
    return hidden * axes * (1 + 2 * bands) + 2 * hidden * hidden + (hidden + axes) * filters * width
