"""Mamba: a selective state space with a decay per channel and state.

Legend: B batch, T tokens, D width, I inner channels, N states of a channel, R rank of the time steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.selective_scan.chunked import chunked_selective_scan, selective_scan_step
from ...kernels.short_conv.naive import causal_conv
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .short_conv import tap_init

__all__ = ["Mamba", "SelectiveSSM", "SelectiveStateSpace"]


class SelectiveSSM(nn.Module):
    """Convolution, SiLU, then `h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t` and `y_t = C_t h_t + D x_t` over [B, T, I].

    A = -exp(A_log), whose differences lie on top of 1, 2, ..., N; B, C and the steps dt are projections of x, dt one of
    low rank. `conv` = 0 leaves the convolution out.
    """

    def __init__(self, inner: int, state: int, rank: int, conv: int):
        super().__init__()
        self.sizes = [rank, state, state]
        self.taps = nn.Parameter(torch.empty(inner, conv)) if conv else None
        self.bias = nn.Parameter(torch.empty(inner)) if conv else None
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt = nn.Linear(rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        inner, state = self.A_log.shape
        memory = torch.zeros(batch, inner, state, device=device, dtype=torch.promote_types(dtype, torch.float32))
        if self.taps is None:
            return {"memory": memory}
        past = torch.zeros(batch, self.taps.shape[1] - 1, inner, dtype=dtype, device=device)
        return {"memory": memory, "past": past}

    def forward(self, x_BTI: Tensor) -> Tensor:
        return self.step(x_BTI, None)[0]

    def step(self, x_BTI: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        new_state = {}
        if self.taps is not None and self.bias is not None:
            x_BTI, new_state["past"] = causal_conv(x_BTI, self.taps, None if state is None else state["past"])
            x_BTI = x_BTI + self.bias
        x_BTI = F.silu(x_BTI)
        dt_BTR, b_BTN, c_BTN = self.select(x_BTI).split(self.sizes, dim=-1)
        dtype = torch.promote_types(x_BTI.dtype, torch.float32)
        dt_BTI = F.softplus(self.dt(dt_BTR).to(dtype) + self.dt_bias)
        states = torch.arange(1, self.sizes[1] + 1, dtype=dtype, device=x_BTI.device)
        A_IN = -states * self.A_log.to(dtype).exp()
        if x_BTI.shape[1] == 1 and state is not None:
            y_BTI, memory = selective_scan_step(x_BTI, dt_BTD=dt_BTI, A_DN=A_IN, b_BTN=b_BTN, c_BTN=c_BTN,
                                                state_BDN=state["memory"])
        else:
            y_BTI, memory = chunked_selective_scan(x_BTI, dt_BTD=dt_BTI, A_DN=A_IN, b_BTN=b_BTN, c_BTN=c_BTN,
                                                   state_BDN=None if state is None else state["memory"])
        return torch.addcmul(y_BTI, x_BTI, self.D), {"memory": memory, **new_state}


class SelectiveStateSpace(nn.Module):
    """`out(ssm(x) * silu(z))`: one projection gives x and z; `backward_ssm` runs from the last token on."""

    def __init__(self, width: int, inner: int, state: int, rank: int, conv: int, bidirectional: bool):
        super().__init__()
        self.inner = inner
        self.input = nn.Linear(width, 2 * inner, bias=False)
        self.ssm = SelectiveSSM(inner, state, rank, conv)
        self.backward_ssm = SelectiveSSM(inner, state, rank, conv) if bidirectional else None
        self.out = nn.Linear(inner, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        return self.ssm.init_state(batch, dtype, device)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Causal only: the next tokens, with the state of the scan."""
        x_BTI, z_BTI = self.input(x_BTD).chunk(2, dim=-1)
        y_BTI, new_state = self.ssm.step(x_BTI, state)
        if self.backward_ssm is not None:
            y_BTI = y_BTI + self.backward_ssm(x_BTI.flip(1)).flip(1)
        return self.out(y_BTI * F.silu(z_BTI)), new_state


@dataclass(frozen=True)
class Mamba(Operator):
    """Mamba: Linear-Time Sequence Modeling with Selective State Spaces (Gu and Dao, 2023).

    state: size N of each channel's state. expand: inner channels over width. conv: taps of the causal convolution; None
    for none. dt_rank: rank of the projection to the time steps; None for ceil(width / 16), as the authors' "auto".
    bidirectional: a second scan with weights of its own from the last token back, both summed before the gate: the
    selective token mixer of MambaMixer (Behrouz et al., 2024) and Vision Mamba; looks ahead.

    The rates start at 1, 2, ..., N in every channel (S4D-real); they are kept as the logarithm of the factor on these.
    """

    state: Any = 16
    expand: Any = 2
    conv: Any = 4
    dt_rank: Any = None
    bidirectional: Any = False
    fixed: ClassVar[Mapping[str, str]] = {"state": "each starts from a rate of its own"}
    source: ClassVar[Source] = Source("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
                                      systems=("S352",), options=("S350",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def inner(self, width: int) -> int:
        return int(self.expand * width)

    def rank(self, width: int) -> int:
        return int(self.dt_rank or -(-width // 16))

    def check(self, width: int, where: str) -> None:
        require_whole("state", self.state, where)
        require_whole("expand", self.expand, where, instead="use 1 or 2")
        require_whole("conv", self.conv or 0, where, low=0, instead="use 4, or None for no convolution")
        require_whole("dt_rank", 1 if self.dt_rank is None else self.dt_rank, where, instead="use 4, or None for width / 16")

    def axes(self, width: int) -> dict[str, Param]:
        d, inner = axis("width", width), axis("expand", self.expand) * axis("channels", width)
        n, r = axis("state", self.state), axis("dt_rank", self.rank(width))
        ssm = {"select.weight": param(r + n + n, inner), "dt.weight": param(inner, r, init=Init("linear", gain=3**-0.5)),
               "dt_bias": param(inner, share="own", init="dt_bias"), "A_log": param(inner, n, init="zeros"),
               "D": param(inner, share="own", init="ones")}
        if self.conv:
            ssm["taps"] = param(inner, axis("taps", self.conv, "trailing"), init=tap_init(self.conv))
            ssm["bias"] = param(inner, init="zeros")
        ways = ("ssm", "backward_ssm") if self.bidirectional else ("ssm",)
        return {"input.weight": param(inner + inner, d), "out.weight": param(d, inner),
                **{f"{way}.{name}": part for way in ways for name, part in ssm.items()}}

    def build(self, width: int) -> nn.Module:
        return SelectiveStateSpace(width, self.inner(width), self.state, self.rank(width), self.conv or 0,
                                   bool(self.bidirectional))

    def macs(self, width: int, length: int) -> float:
        """Projections and convolutions; the scan is element-wise and not counted."""
        ways = 2 if self.bidirectional else 1
        return float(length * (self.matrix_numel(width) + ways * self.inner(width) * (self.conv or 0)))

    def decode_macs(self, width: int, length: int) -> float:
        return self.macs(width, length + 1 if self.bidirectional else 1)

    def state_numel(self, width: int, length: int) -> int:
        if self.bidirectional:
            return 0
        return int(self.inner(width) * (self.state + max((self.conv or 1) - 1, 0)))
