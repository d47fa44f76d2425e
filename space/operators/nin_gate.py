"""A gate made by an MLP-Mixer block, in place of attention.

Legend: B batch, T tokens, L most tokens, D width, F hidden units over tokens, E hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size
from .token_mlp import mixed_tokens

__all__ = ["MixerGate", "NiNGate"]


class MixerGate(nn.Module):
    """`project(x) * mixer(x)`; the mixer is two residual layers, over tokens and over channels."""

    def __init__(self, width: int, max_len: int, hidden: int, channels: int):
        super().__init__()
        self.token_norm = LayerNormalisation(width)
        self.token_up = nn.Parameter(torch.empty(hidden, max_len))
        self.token_down = nn.Parameter(torch.empty(max_len, hidden))
        self.norm = LayerNormalisation(width)
        self.up = nn.Linear(width, channels, bias=False)
        self.down = nn.Linear(channels, width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTD = x_BTD + mixed_tokens(self.token_norm(x_BTD), self.token_up, self.token_down)
        gate_BTD = gate_BTD + self.down(F.gelu(self.up(self.norm(gate_BTD))))
        y_BTD: Tensor = self.project(x_BTD) * gate_BTD
        return y_BTD


@dataclass(frozen=True)
class NiNGate(Operator):
    """NiNformer (Abdullah and Sun, 2024): the Mixer Gating Unit; `Block(mixer=NiNGate(), channel=MLP(ratio=2),
    norm=LayerNorm())` is its layer, without biases, and with a norm for each sublayer (one for both in the authors' code).

    max_len: tokens of the longest sequence, or of all of a grid; more raise ValueError. hidden: units over tokens, ratio:
    hidden channels over width, of the inner block (in the paper equally many, 512 at a width of 256 and 64 tokens).
    """

    max_len: Any = 64
    hidden: Any = 512
    ratio: Any = 2
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"places": "a place in the sequence"}
    source: ClassVar[Source] = Source("NiNformer: A Network in Network Transformer with Token Mixing Generated Gating "
                                      "Function", 2024, systems=("S391",))

    def check(self, width: int, where: str) -> None:
        require_whole("max_len", self.max_len, where)
        require_whole("hidden", self.hidden, where)
        check_ratio(self.ratio, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, e = axis("width", width), axis("channels", hidden_size(self.ratio, width))
        f, places = axis("hidden", self.hidden), axis("places", self.max_len)
        norms = {f"{place}.{name}": part for place in ("token_norm", "norm")
                 for name, part in LayerNorm().axes(width).items()}
        return {"token_up": param(f, places), "token_down": param(places, f), **norms, "up.weight": param(e, d),
                "down.weight": param(d, e), "project.weight": param(d, d)}

    def build(self, width: int) -> nn.Module:
        return MixerGate(width, self.max_len, self.hidden, hidden_size(self.ratio, width))

    def macs(self, width: int, length: int) -> float:
        """Both layers over the places that are there, and the matrices of all tokens."""
        return float(length * width * (2 * self.hidden + 2 * hidden_size(self.ratio, width) + width))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
