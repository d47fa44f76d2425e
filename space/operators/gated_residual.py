"""Gates in place of the residual sum.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source

__all__ = ["Gate", "GatedResidual"]

KINDS = ("gru", "input", "output", "highway", "sigtanh")


class Gate(nn.Module):
    """The gating layers of GTrXL; x is the stream, y what the sublayer gives.

    input    sigmoid(W x) * x + y
    output   x + sigmoid(W x - b) * y
    highway  g * x + (1 - g) * y, g = sigmoid(W x + b)
    sigtanh  x + sigmoid(W y - b) * tanh(U y)
    gru      (1 - z) * x + z * h, z = sigmoid(W_z y + U_z x - b), r = sigmoid(W_r y + U_r x), h = tanh(W_h y + U_h (r * x))
    """

    def __init__(self, width: int, kind: str, rectified: bool = True):
        super().__init__()
        self.kind, self.rectified = kind, rectified
        if kind == "gru":
            self.from_output = nn.Linear(width, 3 * width, bias=False)
            self.from_stream = nn.Linear(width, 2 * width, bias=False)
            self.candidate = nn.Linear(width, width, bias=False)
        elif kind == "sigtanh":
            self.gate = nn.Linear(width, width, bias=False)
            self.candidate = nn.Linear(width, width, bias=False)
        else:
            self.gate = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width)) if kind != "input" else None

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        y_BTD = torch.relu(y_BTD) if self.rectified else y_BTD
        if self.kind == "gru":
            return self.recurrent(x_BTD, y_BTD)
        if self.kind == "input":
            return torch.sigmoid(self.gate(x_BTD)) * x_BTD + y_BTD
        if self.kind == "output":
            return x_BTD + torch.sigmoid(self.gate(x_BTD) - self.bias) * y_BTD
        if self.kind == "highway":
            gate_BTD = torch.sigmoid(self.gate(x_BTD) + self.bias)
            return gate_BTD * x_BTD + (1 - gate_BTD) * y_BTD
        return x_BTD + torch.sigmoid(self.gate(y_BTD) - self.bias) * torch.tanh(self.candidate(y_BTD))

    def recurrent(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        reset_BTD, update_BTD, new_BTD = self.from_output(y_BTD).chunk(3, dim=-1)
        reset_from_BTD, update_from_BTD = self.from_stream(x_BTD).chunk(2, dim=-1)
        r_BTD = torch.sigmoid(reset_BTD + reset_from_BTD)
        z_BTD = torch.sigmoid(update_BTD + update_from_BTD - self.bias)
        h_BTD = torch.tanh(new_BTD + self.candidate(r_BTD * x_BTD))
        return (1 - z_BTD) * x_BTD + z_BTD * h_BTD


@dataclass(frozen=True)
class GatedResidual(Operator):
    """Stabilizing Transformers for Reinforcement Learning (Parisotto et al., 2019): a gate joins stream and sublayer.

    gate: gru, input, output, highway or sigtanh. rectified: ReLU on what the sublayer gives, the other half of the identity
    map reordering; its first half is the norm before the operator, `Block(placement="pre")`, where it is by default.
    start: of the bias, positive, so that a block starts near the identity; the paper takes 2. `input` has none. The
    memory of the paper's Transformer-XL is the mixer's.
    """

    gate: Any = "gru"
    rectified: Any = True
    start: Any = 2.0
    kind: ClassVar[str] = "join"
    source: ClassVar[Source] = Source("Stabilizing Transformers for Reinforcement Learning", 2019, systems=("S308",))

    def check(self, width: int, where: str) -> None:
        if self.gate not in KINDS:
            raise ValueError(f"{unknown('gate', self.gate, KINDS)} (at {where})")
        if isinstance(self.start, bool) or not isinstance(self.start, (int, float)) or not math.isfinite(self.start):
            raise ValueError(f"start is the number the bias of a gate starts at, at {where}: got {self.start!r}; use 2.0")

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        bias = {"bias": param(d, share="own", init=Init("constant", low=float(self.start)))}
        if self.gate == "gru":
            return {"from_output.weight": param(d + d + d, d), "from_stream.weight": param(d + d, d),
                    "candidate.weight": param(d, d), **bias}
        found = {"gate.weight": param(d, d)}
        if self.gate == "sigtanh":
            found["candidate.weight"] = param(d, d)
        return found if self.gate == "input" else found | bias

    def build(self, width: int) -> nn.Module:
        return Gate(width, self.gate, bool(self.rectified))
