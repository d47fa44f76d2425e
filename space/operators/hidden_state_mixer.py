"""A state space without an order, whose gate and projections work on the states instead of the tokens.

Legend: B batch, H and W rows and columns of tokens, L = H * W tokens, D width, N states, I inner channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import filtered, square_taps
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid, require_odd

__all__ = ["HiddenStateMixer", "HiddenStateMixing", "ToldStates"]


class HiddenStateMixing(nn.Module):
    """`h = (softmax(dt) * B)^T x`, then `h <- out(u * silu(z) + skip * u)` with u, z projections of h, then `y = C h`.

    The softmax runs over all tokens, so that every state is a weighted mean of them; B, C and dt pass a depthwise
    convolution on the grid.
    """

    def __init__(self, width: int, state: int, inner: int, kernel: int):
        super().__init__()
        self.select = nn.Linear(width, 3 * state, bias=False)
        self.taps = nn.Parameter(torch.empty(3 * state, kernel, kernel))
        self.mix = nn.Linear(width, 2 * inner, bias=False)
        self.skip = nn.Parameter(torch.empty(1))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x)[0]

    def mixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What every token reads, and the states [B, N, D]."""
        x_BHWD = as_grid(x)
        b_BLN, c_BLN, dt_BLN = filtered(self.select(x_BHWD), self.taps).flatten(1, 2).chunk(3, dim=-1)
        share_BLN = dt_BLN.softmax(1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        h_BND = (share_BLN * b_BLN).transpose(1, 2) @ x_BHWD.flatten(1, 2)
        u_BNI, z_BNI = self.mix(h_BND).chunk(2, dim=-1)
        h_BND = self.out(u_BNI * F.silu(z_BNI) + self.skip * u_BNI)
        y: Tensor = (c_BLN @ h_BND).view(x.shape)
        return y, h_BND


class ToldStates(HiddenStateMixing):
    """The same, and the mean of the normalised states goes to `shared["told"]` where there is one."""

    shares = True

    def __init__(self, width: int, state: int, inner: int, kernel: int):
        super().__init__(width, state, inner, kernel)
        self.told_norm = LayerNormalisation(width)

    def forward(self, x: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        y, h_BND = self.mixed(x)
        if shared is not None and "told" in shared:
            shared["told"].append(self.told_norm(h_BND).mean(1))
        return y


@dataclass(frozen=True)
class HiddenStateMixer(Operator):
    """The HSM-SSD layer of EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality (Lee
    et al., 2024).

    state: number N of hidden states, which takes the place of the number of tokens in gating and projections. expand:
    inner channels over width. kernel: side of the depthwise convolution over B, C and dt, odd. A sequence is a grid of
    one column.

    tells: the classifier reads its states as well, in a `StateFusion` of stages: the paper's networks are
    `presets.efficientvim`.

    The authors add a rate A per state before the softmax over tokens, which cancels it; it is left out.
    """

    state: Any = 64
    expand: Any = 1
    kernel: Any = 3
    tells: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space "
                                      "Duality", 2024, options=("S361",))

    def check(self, width: int, where: str) -> None:
        require_whole("state", self.state, where)
        require_whole("expand", self.expand, where, instead="use 1 or 2")
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, n = axis("width", width), axis("state", self.state)
        inner = axis("expand", self.expand) * axis("channels", width)
        told = LayerNorm().axes(width) if self.tells else {}
        return {**{f"told_norm.{name}": part for name, part in told.items()},
                "select.weight": param(n + n + n, d), "taps": square_taps(n + n + n, self.kernel),
                "mix.weight": param(inner + inner, d), "skip": param(axis("skip", 1), init="ones"),
                "out.weight": param(d, inner)}

    def build(self, width: int) -> nn.Module:
        return (ToldStates if self.tells else HiddenStateMixing)(width, self.state, self.expand * width, self.kernel)

    def macs(self, width: int, length: Length) -> float:
        """Selection, convolution, writing and reading for every token; gate and projections for every state."""
        token = self.state * (3 * width + 3 * self.kernel**2 + 2 * width)
        return float(tokens_of(length) * token + self.state * 3 * self.expand * width * width)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
