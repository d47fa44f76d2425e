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
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["LMU", "LegendreMemoryUnit"]


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
        u_BTC = F.relu(self.signal(x_BTD))
        if state is None:
            wide = torch.promote_types(x_BTD.dtype, torch.float32)
            system_QR, before = legendre_system(self.order, self.theta, wide, x_BTD.device), None
        else:
            system_QR, before = state["system"], state["memory"]
        if before is not None and x_BTD.shape[1] == 1:
            m_BTCQ, memory = legendre_step(u_BTC, system_QR, before)
        else:
            m_BTCQ, memory = fft_legendre(u_BTC, system_QR, before)
        h_BTD = F.relu(self.hidden(torch.cat([m_BTCQ.flatten(2).to(x_BTD.dtype), x_BTD], dim=-1)))
        return self.out(h_BTD), {"memory": memory, "system": system_QR}


@dataclass(frozen=True)
class LMU(Operator):
    """The mixer of LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units (Liu et al., 2024).

    order: Legendre polynomials per signal; None for the width, as in the paper. theta: tokens the memory spans. signals:
    how many projections of the token are remembered, 1 in the paper. Trained by transforms, decoded by the recurrence.

    The norm after the output is the block's affair. Spikes, which replace the activations in the paper's second model,
    are not offered.
    """

    order: Any = None
    theta: Any = 128
    signals: Any = 1
    causal_to_the_bit: ClassVar[bool] = False      # a transform rounds by the whole sequence
    fixed: ClassVar[Mapping[str, str]] = {"order": "an entry is the degree of a polynomial"}
    source: ClassVar[Source] = Source("LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
                                      2024, options=("S280",))

    def degrees(self, width: int) -> int:
        return int(self.order or width)

    def check(self, width: int, where: str) -> None:
        require_whole("order", width if self.order is None else self.order, where, instead="use 32, or None for the width")
        require_whole("signals", self.signals, where)
        if not self.theta > 0 or not math.isfinite(self.theta):
            raise ValueError(f"theta must be a finite number of tokens above 0 at {where}: got {self.theta!r}; use 128")

    def axes(self, width: int) -> dict[str, Param]:
        d, c, h = axis("width", width), axis("signals", self.signals), axis("hidden", width)
        memory = c * axis("order", self.degrees(width))
        return {"signal.weight": param(c, d), "signal.bias": param(c, init="zeros"),
                "hidden.weight": param(h, memory + d), "hidden.bias": param(h, init="zeros"),
                "out.weight": param(d, h), "out.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
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
        """The memory, and the matrices it is moved by."""
        order = self.degrees(width)
        return int(self.signals * order + order * (order + 1))
