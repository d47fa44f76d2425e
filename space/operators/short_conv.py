"""Gated short convolution: the cheapest mixer that looks back.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...kernels.short_conv.naive import causal_conv
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["GatedShortConvolution", "ShortConv", "tap_init"]


def tap_init(taps: int) -> Init:
    """Uniform within 1 / sqrt(taps): outputs of a filter start about as large as its inputs."""
    return Init("uniform", low=-(taps**-0.5), high=taps**-0.5)


class GatedShortConvolution(nn.Module):
    """`out(c * conv(b * x))`: one projection gives b, c and x; the convolution is causal and one filter per channel."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.taps = nn.Parameter(torch.empty(width, kernel))
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        width, kernel = self.taps.shape
        return {"past": torch.zeros(batch, kernel - 1, width, dtype=dtype, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        b_BTD, c_BTD, x_BTD = self.input(x_BTD).chunk(3, dim=-1)
        y_BTD, past = causal_conv(b_BTD * x_BTD, self.taps, None if state is None else state["past"])
        return self.out(c_BTD * y_BTD), {"past": past}


@dataclass(frozen=True)
class ShortConv(Operator):
    """The double-gated convolution block of LFM2 (Liquid AI, 2025), after H3 (Fu et al., 2022).

    kernel: taps, the token itself included; 1 mixes nothing over time.
    """

    kernel: Any = 4
    source: ClassVar[Source] = Source("LFM2 Technical Report", 2025)

    def check(self, width: int, where: str) -> None:
        require_whole("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, channels = axis("width", width), axis("channels", width)
        return {"input.weight": param(channels + channels + channels, d), "out.weight": param(d, channels),
                "taps": param(channels, axis("taps", self.kernel, "trailing"), init=tap_init(self.kernel))}

    def build(self, width: int) -> nn.Module:
        return GatedShortConvolution(width, self.kernel)

    def macs(self, width: int, length: int) -> float:
        return length * self.decode_macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.matrix_numel(width) + self.kernel * width)

    def state_numel(self, width: int, length: int) -> int:
        return int((self.kernel - 1) * width)
