"""A weighted sum over past tokens by their distance, gated by the token itself.

Legend: B batch, T tokens, D width, R lags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.short_conv.naive import causal_conv
from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["Extraction", "Extractor"]

KINDS = ("she", "he", "we", "me")


class Extraction(nn.Module):
    """`out((gate(x_t) + bias) * sum over j < R of x_{t-j} W_j / sqrt(n))`, n being the number of tokens in the sum.

    W_j is a matrix (she), a weight per channel (he), a weight (we) or 1 (me); tap R - 1 weighs the current token.
    """

    def __init__(self, width: int, kind: str, reach: int):
        super().__init__()
        self.width, self.reach, self.kind = width, reach, kind
        self.matrices = nn.Parameter(torch.empty(width, width, reach)) if kind == "she" else None
        self.channels = nn.Parameter(torch.empty(width, reach)) if kind == "he" else None
        self.numbers = nn.Parameter(torch.empty(reach)) if kind == "we" else None
        self.gate = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        return {"past": torch.zeros(batch, self.reach - 1, self.width, dtype=dtype, device=device),
                "seen": torch.zeros(batch, dtype=torch.promote_types(dtype, torch.float32), device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        length = x_BTD.shape[1]
        if self.matrices is not None:
            padded_BSD = torch.cat([state["past"].to(x_BTD.dtype), x_BTD], dim=1)
            sum_BTD = F.conv1d(padded_BSD.transpose(1, 2), self.matrices).transpose(1, 2)
            past = padded_BSD[:, length:].clone()
        else:
            sum_BTD, past = causal_conv(x_BTD, self.weights(x_BTD), state["past"])
        seen_BT = state["seen"][:, None] + torch.arange(1, length + 1, device=x_BTD.device)
        sum_BTD = sum_BTD * seen_BT.clamp_max(self.reach).rsqrt().to(x_BTD.dtype)[..., None]
        return self.out(self.gate(x_BTD) * sum_BTD), {"past": past, "seen": seen_BT[:, -1].clone()}

    def weights(self, x_BTD: Tensor) -> Tensor:
        """One filter per channel, [D, R]."""
        if self.channels is not None:
            return self.channels
        numbers_R = x_BTD.new_ones(self.reach) if self.numbers is None else self.numbers
        return numbers_R.expand(self.width, self.reach)


@dataclass(frozen=True)
class Extractor(Operator):
    """Attention Is Not All You Need Anymore (Chen, 2023): the Extractors SHE, HE, WE and ME.

    variant: "she" has a matrix per lag, "he" a weight per channel and lag, "we" a weight per lag, "me" none. reach: lags,
    the current token included; older tokens are not seen. Sums are divided by the root of their number of terms, as in
    the author's later text (Interpretation of the Transformer and Improvement of the Extractor, 2023). The published text
    of the cheaper three could not be checked; they are read as the same sum with fewer weights.
    """

    variant: Any = "he"
    reach: Any = 128
    fixed: ClassVar[Mapping[str, str]] = {"lags": "a lag is a distance"}
    source: ClassVar[Source] = Source("Attention Is Not All You Need Anymore", 2023, options=("S030",))

    def check(self, width: int, where: str) -> None:
        require_whole("reach", self.reach, where)
        if self.variant not in KINDS:
            raise ValueError(f"{unknown('variant', self.variant, KINDS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        d, lags = axis("width", width), axis("lags", self.reach, "trailing")
        declared = {"gate.weight": param(d, d), "gate.bias": param(d, init="ones"), "out.weight": param(d, d)}
        if self.variant == "she":
            declared["matrices"] = param(d, d, lags, init=Init("normal", gain=width**-0.5))
        elif self.variant == "he":
            declared["channels"] = param(d, lags, init=Init("normal", gain=1.0))
        elif self.variant == "we":
            declared["numbers"] = param(lags, init=Init("normal", gain=1.0))
        return declared

    def build(self, width: int) -> nn.Module:
        return Extraction(width, self.variant, self.reach)

    def macs(self, width: int, length: int) -> float:
        return length * self.decode_macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        """Both projections and every lag, those before the first token included."""
        lag = width * width if self.variant == "she" else width
        return float(self.matrix_numel(width) + self.reach * lag)

    def state_numel(self, width: int, length: int) -> int:
        return int((self.reach - 1) * width + 1)
