"""Half the tokens by a depthwise separable convolution, and back by repeating them.

Legend: B batch, T tokens, D width outside, E width inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, as_dim, axis, param
from ..operators.short_conv import tap_init
from ..operators.spatial import padding

__all__ = ["RepeatedTokens", "SeparableDown", "separable_axes"]


class SeparableDown(nn.Module):
    """One filter per channel over a sequence or a grid at a stride, and a matrix."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, ...], kernel: int):
        super().__init__()
        self.stride = stride
        self.taps = nn.Parameter(torch.empty(width, *(kernel for _ in stride)))
        self.mix = nn.Linear(width, out_width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BDT = x_BTD.movedim(-1, 1)
        pads = [p for size, s, k in zip(reversed(x_BDT.shape[2:]), reversed(self.stride), reversed(self.taps.shape[1:]),
                                        strict=True) for p in padding(size, s, k)]
        conv = F.conv1d if x_BDT.ndim == 3 else F.conv2d
        y_BDT = conv(F.pad(x_BDT, pads), self.taps[:, None], None, self.stride, groups=len(self.taps))
        y_BTE: Tensor = self.mix(y_BDT.movedim(1, -1))
        return y_BTE


class RepeatedTokens(nn.Module):
    """Every token as often as it stands for others, cut to the wanted size, and a matrix."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, ...]):
        super().__init__()
        self.stride = stride
        self.mix = nn.Linear(width, out_width)

    def forward(self, x_BTE: Tensor, like_BTD: Tensor) -> Tensor:
        for d, times in enumerate(self.stride, 1):
            x_BTE = x_BTE.repeat_interleave(times, d).narrow(d, 0, like_BTD.shape[d])
        y_BTD: Tensor = self.mix(x_BTE)
        return y_BTD


def separable_axes(out: Axis, into: Axis, strides: int, kernel: int) -> dict[str, Param]:
    """The parameters of both, as parts `down` and `up` of a module."""
    taps: list[Dim] = [as_dim(axis(f"tap{i}", kernel, "centre")) for i in range(strides)]
    return {"down.taps": param(out, *taps, init=tap_init(kernel**strides)), "down.mix.weight": param(into, out),
            "down.mix.bias": param(into, init="zeros"), "up.mix.weight": param(out, into),
            "up.mix.bias": param(out, init="zeros")}
