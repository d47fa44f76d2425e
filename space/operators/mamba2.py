"""Mamba-2: a selective state space with one decay per head.

Legend: B batch, T tokens, D width, H heads, P head_dim, G groups of input and output matrices, N state size, I = H * P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_recurrence.chunked import chunked_linear_recurrence, linear_recurrence_step
from ...kernels.short_conv.naive import causal_conv
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole
from .short_conv import tap_init

__all__ = ["Mamba2", "StateSpaceDuality"]

CHUNK = 32


class StateSpaceDuality(nn.Module):
    """Per head `S_t = exp(dt_t A) S_{t-1} + dt_t B_t^T x_t` and `y_t = C_t S_t + D x_t`, then a gated norm.

    One projection gives the gate z, then x, B and C, which pass a short convolution and SiLU, then the time steps dt.
    """

    def __init__(self, width: int, heads: int, head_dim: int, state: int, groups: int, conv: int, chunk: int = 32):
        super().__init__()
        self.heads, self.head_dim, self.groups, self.chunk = heads, head_dim, groups, chunk
        self.state_dim = state
        inner, shared = heads * head_dim, groups * state
        self.sizes = [inner, inner + 2 * shared, heads]
        self.input = nn.Linear(width, sum(self.sizes), bias=False)
        self.taps = nn.Parameter(torch.empty(inner + 2 * shared, conv)) if conv else None
        self.bias = nn.Parameter(torch.empty(inner + 2 * shared)) if conv else None
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        memory = torch.zeros(batch, self.heads, self.state_dim, self.head_dim, device=device,
                             dtype=torch.promote_types(dtype, torch.float32))
        if self.taps is None:
            return {"memory": memory}
        past = torch.zeros(batch, self.taps.shape[1] - 1, self.taps.shape[0], dtype=dtype, device=device)
        return {"memory": memory, "past": past}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        batch, length, _ = x_BTD.shape
        z_BTI, mixed_BTM, dt_BTH = self.input(x_BTD).split(self.sizes, dim=-1)
        new_state = {}
        if self.taps is not None:
            mixed_BTM, new_state["past"] = causal_conv(mixed_BTM, self.taps, None if state is None else state["past"])
        if self.bias is not None:
            mixed_BTM = mixed_BTM + self.bias
        shared = self.groups * self.state_dim
        x, b, c = torch.split(F.silu(mixed_BTM), [self.heads * self.head_dim, shared, shared], dim=-1)
        x_BTHP = x.view(batch, length, self.heads, self.head_dim)
        b_BTGN = b.view(batch, length, self.groups, self.state_dim)
        c_BTGN = c.view(batch, length, self.groups, self.state_dim)
        dtype = torch.promote_types(dt_BTH.dtype, torch.float32)
        dt_BTH = F.softplus(dt_BTH.to(dtype) + self.dt_bias)
        log_decay_BTH = -self.A_log.to(dtype).exp() * dt_BTH
        written_BTHP = x_BTHP * dt_BTH[..., None].to(x_BTHP.dtype)
        if length == 1 and state is not None:
            y_BTHP, memory = linear_recurrence_step(c_BTGN, b_BTGN, written_BTHP, log_decay_BTH=log_decay_BTH,
                                                    state_BHKV=state["memory"])
        else:
            y_BTHP, memory = chunked_linear_recurrence(c_BTGN, b_BTGN, written_BTHP, log_decay_BTH=log_decay_BTH,
                                                       state_BHKV=None if state is None else state["memory"],
                                                       chunk=self.chunk)
        y_BTI = torch.addcmul(y_BTHP, x_BTHP, self.D[:, None]).flatten(2)
        return self.out(self.gated_norm(y_BTI, z_BTI)), {"memory": memory, **new_state}

    def gated_norm(self, y_BTI: Tensor, z_BTI: Tensor) -> Tensor:
        """RMS norm of y * silu(z) over the channels of each group."""
        batch, length, inner = y_BTI.shape
        gated_BTGE = (y_BTI * F.silu(z_BTI)).view(batch, length, self.groups, inner // self.groups)
        return F.rms_norm(gated_BTGE, gated_BTGE.shape[-1:], eps=1e-5).flatten(2) * self.norm


@dataclass(frozen=True)
class Mamba2(Operator):
    """Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality
    (Dao and Gu, 2024).

    state: size N of each head's state. expand: inner size over width. heads = expand * width / head_dim, each holding
    N x head_dim numbers. groups: heads that share B and C. conv: taps of the causal convolution; None for none.
    """

    state: Any = 64
    head_dim: Any = 64
    expand: Any = 2
    conv: Any = 4
    groups: Any = 1
    source: ClassVar[Source] = Source("Transformers are SSMs: Generalized Models and Efficient Algorithms Through "
                                      "Structured State Space Duality", 2024, options=("S279",))

    def heads(self, width: int) -> int:
        return int(self.expand * width // self.head_dim)

    def check(self, width: int, where: str) -> None:
        for name in ("state", "head_dim", "expand", "groups"):
            require_whole(name, getattr(self, name), where)
        require_whole("conv", self.conv or 0, where, low=0, instead="use 4, or None for no convolution")
        require_divisor("head_dim", self.head_dim, "expand * width", self.expand * width, where)
        require_divisor("groups", self.groups, "heads (expand * width / head_dim)", self.heads(width), where)

    def _mixed(self, width: int) -> int:
        """Channels that pass the convolution: x, B and C."""
        return int(self.expand * width + 2 * self.groups * self.state)

    def axes(self, width: int) -> dict[str, Param]:
        g, r = axis("groups", self.groups), axis("group_heads", self.heads(width) // self.groups)
        d, inner, heads = axis("width", width), g * r * axis("head_dim", self.head_dim), g * r
        matrices = g * axis("state", self.state)
        declared = {"input.weight": param(inner + inner + matrices + matrices + heads, d),
                    "out.weight": param(d, inner), "norm": param(inner, share="own", init="ones"),
                    "A_log": param(heads, share="own", init="a_log"),
                    "dt_bias": param(heads, share="own", init="dt_bias"), "D": param(heads, share="own", init="ones")}
        if self.conv:
            mixed = inner + matrices + matrices
            declared["taps"] = param(mixed, axis("taps", self.conv, "trailing"), init=tap_init(self.conv))
            declared["bias"] = param(mixed, init="zeros")
        return declared

    def build(self, width: int) -> nn.Module:
        return StateSpaceDuality(width, self.heads(width), self.head_dim, self.state, self.groups, self.conv or 0,
                                 CHUNK)

    def macs(self, width: int, length: int) -> float:
        """Projections, convolution, and the products of the chunks the sequence is cut into."""
        heads, chunks = self.heads(width), -(-length // CHUNK)
        size = -(-length // chunks)
        inside = size * size * heads * (self.state + self.head_dim)
        between = 2 * size * heads * self.state * self.head_dim
        return float(length * (self.matrix_numel(width) + self._mixed(width) * (self.conv or 0))
                     + chunks * (inside + between))

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, convolution, and two passes over the state: write and read."""
        return float(self.matrix_numel(width) + self._mixed(width) * (self.conv or 0)
                     + 2 * self.expand * width * self.state)

    def state_numel(self, width: int, length: int) -> int:
        return int(self.expand * width * self.state + max((self.conv or 1) - 1, 0) * self._mixed(width))
