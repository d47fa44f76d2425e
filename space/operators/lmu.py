"""A Legendre memory unit: the last theta tokens of a few signals as coefficients of Legendre polynomials.

Legend: B batch, T tokens, D width, C signals, Q order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.legendre.fft import fft_legendre, legendre_step, legendre_system
from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .spiking import SPIKE_NORMS, SpikingNorm, spiking_norm_axes

__all__ = ["LMU", "LegendreMemoryUnit", "SpikingLegendreMemoryUnit", "remember"]


def remember(u_BTC: Tensor, state: dict[str, Tensor] | None, order: int, theta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """`m_t = A m_{t-1} + B u_t` per signal, [B, T, C, Q], and the state after: one token by the recurrence, more by
    transforms."""
    if state is None:
        wide = torch.promote_types(u_BTC.dtype, torch.float32)
        system_QR, before = legendre_system(order, theta, wide, u_BTC.device), None
    else:
        system_QR, before = state["system"], state["memory"]
    if before is not None and u_BTC.shape[1] == 1:
        m_BTCQ, memory = legendre_step(u_BTC, system_QR, before)
    else:
        m_BTCQ, memory = fft_legendre(u_BTC, system_QR, before)
    return m_BTCQ, {"memory": memory, "system": system_QR}


class LegendreMemoryUnit(nn.Module):
    """`u = relu(signal(x))`, `m_t = A m_{t-1} + B u_t` per signal, then `out(relu(hidden([m, x])))`.

    A and B are the fixed matrices of the memory. The state keeps them, since one token is too cheap to compute them for.
    """

    def __init__(self, width: int, signals: int, order: int, theta: float):
        super().__init__()
        self.signals, self.order, self.theta = signals, order, theta
        self.signal = nn.Linear(width, signals)
        self.hidden = nn.Linear(signals * order + width, width)
        self.out = nn.Linear(width, width)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch, self.signals, self.order, dtype=wide, device=device)
        return {"memory": memory, "system": legendre_system(self.order, self.theta, wide, memory.device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        m_BTCQ, after = remember(F.relu(self.signal(x_BTD)), state, self.order, self.theta)
        h_BTD = F.relu(self.hidden(torch.cat([m_BTCQ.flatten(2).to(x_BTD.dtype), x_BTD], dim=-1)))
        return self.out(h_BTD), after


class SpikingLegendreMemoryUnit(LegendreMemoryUnit):
    """`s = spikes(x)`, `u = spikes(signal(s))`, m as above, then `out(spikes(hidden([spikes(m), s])))`.

    Spikes are those of a norm of what they are given. The state also holds the voltages of all four layers of neurons.
    """

    def __init__(self, width: int, signals: int, order: int, theta: float, norm: str):
        super().__init__(width, signals, order, theta)
        self.input_spikes = SpikingNorm(width, norm, threshold=0.5)
        self.signal_spikes = SpikingNorm(signals, norm)
        self.memory_spikes = SpikingNorm(signals * order, norm)
        self.hidden_spikes = SpikingNorm(width, norm)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        return {**super().init_state(batch, dtype, device), "input": self.input_spikes.init_state(batch, dtype, device),
                "signal": self.signal_spikes.init_state(batch, dtype, device),
                "between": self.memory_spikes.init_state(batch, dtype, device),
                "hidden": self.hidden_spikes.init_state(batch, dtype, device)}

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        before = self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device) if state is None else state
        s_BTD, entered = self.input_spikes.step(x_BTD, before["input"])
        u_BTC, signal = self.signal_spikes.step(self.signal(s_BTD), before["signal"])
        m_BTCQ, after = remember(u_BTC, state, self.order, self.theta)
        m_BTM, between = self.memory_spikes.step(m_BTCQ.flatten(2).to(x_BTD.dtype), before["between"])
        h_BTD, hidden = self.hidden_spikes.step(self.hidden(torch.cat([m_BTM, s_BTD], dim=-1)), before["hidden"])
        return self.out(h_BTD), {**after, "input": entered, "signal": signal, "between": between, "hidden": hidden}


@dataclass(frozen=True)
class LMU(Operator):
    """The mixer of LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units (Liu et al., 2024).

    order: Legendre polynomials per signal; None for the width, twice that with spikes, as in the authors' code. theta:
    tokens the memory spans. signals: how many projections of the token are remembered, 1 in the paper. Trained by
    transforms, decoded by the recurrence.

    spiking: the paper's second model: leaky integrate-and-fire neurons for every activation, before the memory's weights
    and between memory and hidden layer too, each behind a norm of its own. They run along the tokens, one step a token.
    norm: "batch", which looks at the whole batch while it trains, so that it is not causal; "affine", what that is once
    trained, a gain and a shift, which streams. Decoding is what training computes; the authors' code leaves out the memory's
    norm and neurons there.

    The batch norm after the output is the block's affair: `Block(mixer=LMU(), norm=BatchNorm(), placement="out")`.
    """

    order: Any = None
    theta: Any = 128
    signals: Any = 1
    spiking: Any = False
    norm: Any = "batch"
    patterns: ClassVar[tuple[str, ...]] = ("causal self",)      # a batch norm looks ahead while it trains alone
    causal_to_the_bit: ClassVar[bool] = False      # a transform rounds by the whole sequence
    fixed: ClassVar[Mapping[str, str]] = {"order": "an entry is the degree of a polynomial"}
    source: ClassVar[Source] = Source("LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
                                      2024, options=("S280",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.spiking or bool(self.norm == "affine")

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return self.causal

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        """A neuron fires or does not."""
        return bool(self.spiking)

    def degrees(self, width: int) -> int:
        return int(self.order or (2 * width if self.spiking else width))

    def check(self, width: int, where: str) -> None:
        require_whole("order", width if self.order is None else self.order, where, instead="use 32, or None for the width")
        require_whole("signals", self.signals, where)
        if not self.theta > 0 or not math.isfinite(self.theta):
            raise ValueError(f"theta must be a finite number of tokens above 0 at {where}: got {self.theta!r}; use 128")
        if self.norm not in SPIKE_NORMS:
            raise ValueError(f"{unknown('norm', self.norm, SPIKE_NORMS)} (at {where})")
        if self.norm != "batch" and not self.spiking:
            raise ValueError(f"a norm is of neurons at {where}: got norm={self.norm!r} with spiking=False; leave it out, or "
                             "use spiking=True")

    def axes(self, width: int) -> dict[str, Param]:
        d, c, h = axis("width", width), axis("signals", self.signals), axis("hidden", width)
        memory = c * axis("order", self.degrees(width))
        found = {"signal.weight": param(c, d), "signal.bias": param(c, init="zeros"),
                 "hidden.weight": param(h, memory + d), "hidden.bias": param(h, init="zeros"),
                 "out.weight": param(d, h), "out.bias": param(d, init="zeros")}
        if self.spiking:
            for place, channels in (("input", d), ("signal", c), ("memory", memory), ("hidden", h)):
                found |= spiking_norm_axes(f"{place}_spikes", channels, self.norm)
        return found

    def build(self, width: int) -> nn.Module:
        if self.spiking:
            return SpikingLegendreMemoryUnit(width, self.signals, self.degrees(width), float(self.theta), self.norm)
        return LegendreMemoryUnit(width, self.signals, self.degrees(width), float(self.theta))

    def macs(self, width: int, length: int) -> float:
        """Projections, the impulse response by doubling, and transforms of 2.5 n log2 n operations (n = 2 length), two
        operations to a multiply-add."""
        order, doublings = self.degrees(width), max(length - 1, 0).bit_length()
        response = (2**doublings - 1) * order**2 + doublings * order**3
        transforms = (self.signals + order + self.signals * order) * 1.25 * 2 * length * math.log2(2 * length)
        return float(length * self.matrix_numel(width) + response + transforms)

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and the memory's matrix for every signal."""
        return float(self.matrix_numel(width) + self.signals * self.degrees(width) ** 2)

    def state_numel(self, width: int, length: int) -> int:
        """The memory, the matrices it is moved by, and the voltages of neurons."""
        order = self.degrees(width)
        neurons = 2 * width + self.signals * (order + 1) if self.spiking else 0
        return int(self.signals * order + order * (order + 1) + neurons)
