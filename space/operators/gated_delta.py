"""Gated DeltaNet: a matrix memory that is corrected by the delta rule and fades by a gate.

Legend: B batch, T tokens, D width, H heads, K key size of a head, V value size of a head, S the short convolution's
past inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.gated_delta.chunked import chunked_gated_delta, gated_delta_step
from ...kernels.short_conv.naive import causal_conv
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole
from .short_conv import tap_init

__all__ = ["GatedDeltaNet", "GatedDeltaRule"]

CHUNK = 32


class GatedDeltaRule(nn.Module):
    """Per head `S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t`, read as `q_t S_t`, normalised and gated.

    One projection gives queries, keys and values, then the gate, the writing strengths b and the time steps of the
    decay a, in this order. `conv` = 0 leaves the short convolution out.
    """

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, conv: int, gate: bool, decay: bool,
                 strength: float, chunk: int = 32):
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.strength, self.chunk = heads, key_dim, value_dim, strength, chunk
        mixed = heads * (2 * key_dim + value_dim)
        self.sizes = [mixed, heads * value_dim if gate else 0, heads, heads if decay else 0]
        self.input = nn.Linear(width, sum(self.sizes), bias=False)
        self.taps = nn.Parameter(torch.empty(mixed, conv)) if conv else None
        self.A_log = nn.Parameter(torch.empty(heads)) if decay else None
        self.dt_bias = nn.Parameter(torch.empty(heads)) if decay else None
        self.norm = nn.RMSNorm(value_dim, eps=1e-6)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        memory = torch.zeros(batch, self.heads, self.key_dim, self.value_dim, device=device,
                             dtype=torch.promote_types(dtype, torch.float32))
        if self.taps is None:
            return {"memory": memory}
        past = torch.zeros(batch, self.taps.shape[1] - 1, self.taps.shape[0], dtype=dtype, device=device)
        return {"memory": memory, "past": past}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        batch, length, _ = x_BTD.shape
        mixed_BTM, gate_BTG, beta_BTH, dt_BTH = self.input(x_BTD).split(self.sizes, dim=-1)
        new_state = {}
        if self.taps is not None:
            mixed_BTM, new_state["past"] = causal_conv(mixed_BTM, self.taps, None if state is None else state["past"])
        qk, v = torch.split(F.silu(mixed_BTM), [2 * self.heads * self.key_dim, self.heads * self.value_dim], dim=-1)
        qk_BT2HK = qk.view(batch, length, 2, self.heads, self.key_dim)
        qk_BT2HK = qk_BT2HK * torch.rsqrt(qk_BT2HK.square().sum(-1, keepdim=True) + 1e-6)
        q_BTHK, k_BTHK = qk_BT2HK.unbind(2)
        v_BTHV = v.view(batch, length, self.heads, self.value_dim)
        log_decay_BTH, beta_BTH = self.log_decay(dt_BTH), self.strength * beta_BTH.sigmoid()
        if length == 1 and state is not None:
            o_BTHV, memory = gated_delta_step(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH=log_decay_BTH, beta_BTH=beta_BTH,
                                              scale=self.key_dim**-0.5, state_BHKV=state["memory"])
        else:
            o_BTHV, memory = chunked_gated_delta(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH=log_decay_BTH, beta_BTH=beta_BTH,
                                                 scale=self.key_dim**-0.5, chunk=self.chunk,
                                                 state_BHKV=None if state is None else state["memory"])
        o_BTG = self.norm(o_BTHV).flatten(2)
        if self.sizes[1]:
            o_BTG = o_BTG * F.silu(gate_BTG)
        return self.out(o_BTG), {"memory": memory, **new_state}

    def log_decay(self, dt_BTH: Tensor) -> Tensor:
        """-exp(A_log) softplus(dt + dt_bias), or nothing for a memory that does not fade."""
        if self.A_log is None or self.dt_bias is None:
            return dt_BTH.new_zeros(1, dt_BTH.shape[1], self.heads)
        dtype = torch.promote_types(dt_BTH.dtype, torch.float32)
        return -self.A_log.to(dtype).exp() * F.softplus(dt_BTH.to(dtype) + self.dt_bias)


@dataclass(frozen=True)
class GatedDeltaNet(Operator):
    """Gated Delta Networks: Improving Mamba2 with Delta Rule (Yang, Kautz and Hatamizadeh, 2024).

    heads: matrix memories of head_dim x (expand_v * head_dim) numbers; head_dim defaults to width / heads.
    conv: taps of the causal convolution over queries, keys and values; None for none.
    gate: SiLU output gate. allow_neg_eigval: writing strengths up to 2, so that a write can flip a direction
    (Grazzi et al., 2024). decay: False with gate=False gives DeltaNet (Yang et al., 2024).
    """

    heads: Any = 2
    head_dim: Any = None
    expand_v: Any = 1
    conv: Any = 4
    gate: Any = True
    allow_neg_eigval: Any = False
    decay: Any = True
    source: ClassVar[Source] = Source("Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024,
                                      options=("S248",))

    def sizes(self, width: int) -> tuple[int, int]:
        """Key and value size of a head."""
        head_dim = self.head_dim or width // self.heads
        return head_dim, head_dim * self.expand_v

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("expand_v", self.expand_v, where, instead="use 1 or 2")
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)
        require_whole("conv", self.conv or 0, where, low=0, instead="use 4, or None for no convolution")

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim = self.sizes(width)
        d, h = axis("width", width), axis("heads", self.heads)
        keys, values = h * axis("key_dim", key_dim), h * axis("value_dim", value_dim)
        gates = h * axis("gate", int(bool(self.gate))) * axis("value_dim", value_dim)
        steps = h * axis("decay", int(bool(self.decay)))
        declared = {"input.weight": param(keys + keys + values + gates + h + steps, d), "out.weight": param(d, values),
                    "norm.weight": param(axis("value_dim", value_dim), share="own", init="ones")}
        if self.conv:
            taps = axis("taps", self.conv, "trailing")
            declared["taps"] = param(keys + keys + values, taps, init=tap_init(self.conv))
        if self.decay:
            declared["A_log"] = param(h, share="own", init="a_log")
            declared["dt_bias"] = param(h, share="own", init="dt_bias")
        return declared

    def build(self, width: int) -> nn.Module:
        key_dim, value_dim = self.sizes(width)
        return GatedDeltaRule(width, self.heads, key_dim, value_dim, self.conv or 0, bool(self.gate), bool(self.decay),
                              2.0 if self.allow_neg_eigval else 1.0, CHUNK)

    def _conv_numel(self, width: int) -> int:
        key_dim, value_dim = self.sizes(width)
        return int(self.heads * (2 * key_dim + value_dim) * (self.conv or 0))

    def macs(self, width: int, length: int) -> float:
        """Projections, convolution, and the products of the chunks the sequence is cut into, the solve included."""
        key_dim, value_dim = self.sizes(width)
        chunks = -(-length // CHUNK)
        size = -(-length // chunks)
        inside = size * size * (3 * key_dim + 2 * value_dim + size / 2)
        between = size * key_dim * (3 * value_dim + key_dim) + key_dim * key_dim * value_dim
        return float(length * (self.matrix_numel(width) + self._conv_numel(width))
                     + chunks * self.heads * (inside + between))

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, convolution, and three passes over the memory: fade and answer, write, read."""
        key_dim, value_dim = self.sizes(width)
        return float(self.matrix_numel(width) + self._conv_numel(width) + 3 * self.heads * key_dim * value_dim)

    def state_numel(self, width: int, length: int) -> int:
        key_dim, value_dim = self.sizes(width)
        past = max((self.conv or 1) - 1, 0) * self.heads * (2 * key_dim + value_dim)
        return int(self.heads * key_dim * value_dim + past)
