"""Hyena: long convolutions whose filters are functions of the distance, between element-wise gates.

Legend: B batch, T tokens, D width, N long filters (order - 1), L taps of a filter, E positional features, F hidden
units of the filter network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.long_conv.fft import fft_long_conv, long_conv_step
from ...kernels.short_conv.naive import causal_conv
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .short_conv import tap_init

__all__ = ["Hyena", "LongConvolution"]

BLOCK = 128


class LongConvolution(nn.Module):
    """`v <- h_n * (x_n v)` for each filter, then `x_0 v`; one projection and a short convolution give v, x_0, x_1, ...

    A filter is a network of sines of the distance times a window exp(-a t / reach), scaled to unit energy, plus a
    weight on the token itself. Decoding has no finite state: it keeps all inputs of the long convolutions, and the
    filters, computed a block of taps at a time.
    """

    def __init__(self, width: int, order: int, filter_dim: int, bands: int, conv: int, reach: float, block: int = 128):
        super().__init__()
        self.width, self.filters, self.bands, self.reach, self.block = width, order - 1, bands, reach, block
        branches = (order + 1) * width
        self.input = nn.Linear(width, branches, bias=False)
        self.taps = nn.Parameter(torch.empty(branches, conv))
        self.sine_0 = nn.Linear(1 + 2 * bands, filter_dim)
        self.sine_1 = nn.Linear(filter_dim, filter_dim)
        self.sine_2 = nn.Linear(filter_dim, filter_dim)
        self.frequency = nn.Parameter(torch.empty(filter_dim))
        self.response = nn.Linear(filter_dim, self.filters * width, bias=False)
        self.log_rate = nn.Parameter(torch.empty(self.filters, width))
        self.skip = nn.Parameter(torch.empty(self.filters, width))
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        branches, conv = self.taps.shape
        state = {"past": torch.zeros(batch, conv - 1, branches, dtype=dtype, device=device),
                 "filter": torch.zeros(0, self.filters, self.width, device=device,
                                       dtype=torch.promote_types(dtype, torch.float32))}
        for n in range(self.filters):
            state[f"inputs_{n}"] = torch.zeros(batch, 0, self.width, dtype=dtype, device=device)
        return state

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        length = x_BTD.shape[1]
        u_BTM, past = causal_conv(self.input(x_BTD), self.taps, None if state is None else state["past"])
        v_BTD, out_gate_BTD, *gates = torch.split(u_BTM, self.width, dim=-1)
        seen = length if state is None else length + state["inputs_0"].shape[1]
        filter_LND = self.filter_taps(seen, None if state is None else state["filter"])
        new_state = {"past": past, "filter": filter_LND}
        for n, gate_BTD in enumerate(gates):
            inputs_BSD = gate_BTD * v_BTD
            if state is not None:
                inputs_BSD = torch.cat([state[f"inputs_{n}"], inputs_BSD], dim=1)
            new_state[f"inputs_{n}"] = inputs_BSD
            if length == 1 and state is not None:
                v_BTD = long_conv_step(inputs_BSD, filter_LND[:, n])
            else:
                v_BTD = fft_long_conv(inputs_BSD, filter_LND[:, n])[:, seen - length:]
        return self.out(out_gate_BTD * v_BTD), new_state

    def filter_taps(self, needed: int, known_LND: Tensor | None) -> Tensor:
        """The first `needed` taps and the rest of their block, computing those that are not known yet.

        In float32 at least: positions above 256 and sines of large angles have no meaning in half precision.
        """
        start = 0 if known_LND is None else known_LND.shape[0]
        if known_LND is not None and start >= needed:
            return known_LND
        end = self.block * math.ceil(needed / self.block)
        device, dtype = self.skip.device, torch.promote_types(self.skip.dtype, torch.float32)
        time_L1 = torch.arange(start, end, device=device, dtype=dtype)[:, None] / self.reach
        angle_LE = time_L1 * (2 * math.pi * torch.arange(1, self.bands + 1, device=device, dtype=dtype))
        h_LF = torch.cat([time_L1, angle_LE.cos(), angle_LE.sin()], dim=-1)
        for layer in (self.sine_0, self.sine_1, self.sine_2):
            h_LF = torch.sin(self.frequency * F.linear(h_LF, layer.weight.to(dtype), layer.bias.to(dtype)))
        rate_ND = self.log_rate.to(dtype).exp()
        window_LND = torch.sqrt(2 * rate_ND / self.reach) * torch.exp(-rate_ND * time_L1[..., None])
        h_LND = F.linear(h_LF, self.response.weight.to(dtype)).view(-1, self.filters, self.width)
        filter_LND = h_LND * window_LND
        if known_LND is not None and start:
            return torch.cat([known_LND, filter_LND])
        return torch.cat([filter_LND[:1] + self.skip, filter_LND[1:]])


@dataclass(frozen=True)
class Hyena(Operator):
    """Hyena Hierarchy: Towards Larger Convolutional Language Models (Poli et al., 2023).

    order: gates and long convolutions interleaved; `order - 1` long convolutions, as in the authors' implementation.
    filter_dim, bands: hidden units and frequencies of the network that gives the filters. conv: taps of the short
    convolution. reach: tokens after which a filter has faded, to 5 % in its slowest channel; longer sequences work.

    Unlike the authors', the windows' rates are learned and scaled to unit energy, so that neither reach nor length
    changes the size of the output, and positions are counted in `reach`, not in a longest length.

    Decoding costs and keeps O(length) per token; prefer another mixer where long contexts are decoded.
    """

    order: Any = 2
    filter_dim: Any = 64
    bands: Any = 8
    conv: Any = 3
    reach: Any = 512
    causal_to_the_bit: ClassVar[bool] = False      # a transform rounds by the whole sequence
    fixed: ClassVar[Mapping[str, str]] = {"branches": "each plays another part", "filters": "they run one after the other",
                                          "bands": "a band is a frequency"}
    source: ClassVar[Source] = Source("Hyena Hierarchy: Towards Larger Convolutional Language Models", 2023,
                                      options=("S300",))

    def check(self, width: int, where: str) -> None:
        require_whole("order", self.order, where, low=2, instead="use ShortConv for no long convolution")
        for name in ("filter_dim", "bands", "conv", "reach"):
            require_whole(name, getattr(self, name), where)

    def axes(self, width: int) -> dict[str, Param]:
        d, channels, filters = axis("width", width), axis("channels", width), axis("filters", self.order - 1)
        branches, f = axis("branches", self.order + 1) * channels, axis("filter_dim", self.filter_dim)
        bands, phase = axis("bands", self.bands), Init("uniform", low=-0.25, high=0.25)
        declared = {
            "input.weight": param(branches, d),
            "taps": param(branches, axis("taps", self.conv, "trailing"), init=tap_init(self.conv)),
            "frequency": param(f, init=Init("constant", low=10.0)),
            "response.weight": param(filters * channels, f),
            "log_rate": param(filters, channels, init=Init("uniform", low=math.log(3.0), high=math.log(15.0))),
            "skip": param(filters, channels, init=Init("normal", gain=1.0)),
            "out.weight": param(d, channels),
            "sine_0.weight": param(f, axis("time", 1) + bands + bands),
        }
        for layer in range(3):
            declared[f"sine_{layer}.bias"] = param(f, init=phase)
            if layer:
                declared[f"sine_{layer}.weight"] = param(f, f)
        return declared

    def build(self, width: int) -> nn.Module:
        return LongConvolution(width, self.order, self.filter_dim, self.bands, self.conv, float(self.reach), BLOCK)

    def _token_macs(self, width: int) -> int:
        """Projections and the short convolution."""
        return int((self.order + 2) * width * width + (self.order + 1) * width * self.conv)

    def _tap_macs(self, width: int) -> int:
        """One tap of every filter."""
        f = self.filter_dim
        return int(f * (1 + 2 * self.bands) + 2 * f * f + f * (self.order - 1) * width)

    def macs(self, width: int, length: int) -> float:
        """Projections, the filter network, and three transforms per filter of 2.5 n log2 n operations (n = 2 length),
        two operations to a multiply-add."""
        transforms = 3 * (self.order - 1) * width * 1.25 * 2 * length * math.log2(2 * length)
        taps = BLOCK * math.ceil(length / BLOCK)
        return float(length * self._token_macs(width) + taps * self._tap_macs(width) + transforms)

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, one product per kept input, and one tap of the filters, which are computed by blocks."""
        return float(self._token_macs(width) + (self.order - 1) * width * (length + 1) + self._tap_macs(width))

    def state_numel(self, width: int, length: int) -> int:
        """All inputs of the long convolutions, the filters up to a full block, and the short convolution's past."""
        taps = BLOCK * math.ceil(length / BLOCK)
        return int((self.order - 1) * width * (length + taps) + (self.conv - 1) * (self.order + 1) * width)
