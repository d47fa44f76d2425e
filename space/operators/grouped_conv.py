"""A causal convolution in groups of channels between two projections.

Legend: B batch, T tokens, D width, G groups, I channels of a group that come in, O those that go out, C = G * I,
K taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole

__all__ = ["GroupedConv", "GroupedConvolution"]


class GroupedConvolution(nn.Module):
    """`out(silu(conv(input(x))))`; within a group every channel that goes out sees every one that comes in."""

    def __init__(self, width: int, groups: int, channels: int, kernel: int):
        super().__init__()
        self.groups = groups
        self.input = nn.Linear(width, groups * channels, bias=False)
        self.taps = nn.Parameter(torch.empty(groups * channels, channels, kernel))
        self.out = nn.Linear(groups * channels, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        channels, _, kernel = self.taps.shape
        return {"past": torch.zeros(batch, kernel - 1, channels, dtype=dtype, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next tokens, with the last K - 1 inputs of the convolution as state."""
        x_BTC = self.input(x_BTD)
        past = x_BTC.new_zeros(len(x_BTC), self.taps.shape[2] - 1, x_BTC.shape[2]) if state is None else state["past"]
        seen_BSC = torch.cat([past.to(x_BTC.dtype), x_BTC], dim=1)
        y_BTC = self.newest(seen_BSC) if x_BTC.shape[1] == 1 else self.convolved(seen_BSC)
        return self.out(F.silu(y_BTC)), {"past": seen_BSC[:, x_BTC.shape[1]:].clone()}

    def convolved(self, seen_BSC: Tensor) -> Tensor:
        """Outputs of all tokens but the first K - 1; a height of 1, since on a CPU only conv2d reads channels last."""
        y_BC1T = F.conv2d(seen_BSC.transpose(1, 2)[:, :, None], self.taps[:, :, None], groups=self.groups)
        return y_BC1T[:, :, 0].transpose(1, 2)

    def newest(self, seen_BKC: Tensor) -> Tensor:
        """The output of the newest of K tokens: a product per group, without a convolution's set-up."""
        window_BGE = seen_BKC.view(*seen_BKC.shape[:2], self.groups, -1).permute(0, 2, 3, 1).flatten(2)
        taps_GOE = self.taps.reshape(self.groups, -1, self.taps.shape[1] * self.taps.shape[2])
        return torch.matmul(window_BGE.transpose(0, 1), taps_GOE.mT).transpose(0, 1).flatten(1)[:, None]


@dataclass(frozen=True)
class GroupedConv(Operator):
    """Aggregated Residual Transformations (Xie et al., 2017) along time: a projection, a causal convolution in groups,
    a projection back; the residual is the block's.

    kernel: taps, the token itself included. groups: of channels that do not see each other in the convolution.
    channels: of each group, on both sides; default width / groups.
    """

    kernel: Any = 4
    groups: Any = 4
    channels: Any = None
    keeps_zero: ClassVar[bool] = True
    batched: ClassVar[frozenset[str]] = frozenset({"groups"})
    source: ClassVar[Source] = Source("Aggregated Residual Transformations for Deep Neural Networks", 2017)

    def _channels(self, width: int) -> int:
        return int(self.channels or width // self.groups)

    def check(self, width: int, where: str) -> None:
        require_whole("kernel", self.kernel, where)
        require_whole("groups", self.groups, where)
        if self.channels is None:
            require_divisor("groups", self.groups, "width", width, where)
        else:
            require_whole("channels", self.channels, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, g, size = axis("width", width), axis("groups", self.groups), self._channels(width)
        into, out = axis("channels_in", size), axis("channels_out", size)
        spread = (size * self.kernel) ** -0.5
        taps = param(g * out, into, axis("taps", self.kernel, "trailing"), init=Init("uniform", low=-spread, high=spread))
        return {"input.weight": param(g * into, d), "out.weight": param(d, g * out), "taps": taps}

    def build(self, width: int) -> nn.Module:
        return GroupedConvolution(width, self.groups, self._channels(width), self.kernel)

    def macs(self, width: int, length: int) -> float:
        return length * self.decode_macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and every tap of the convolution."""
        return float(self.matrix_numel(width) + self.groups * self._channels(width) ** 2 * self.kernel)

    def state_numel(self, width: int, length: int) -> int:
        return int((self.kernel - 1) * self.groups * self._channels(width))
