"""Gated linear attention: the state of every key channel fades at a rate that the token decides.

Legend: B batch, T tokens, D width, H heads, K key_dim, V value_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.gated_linear.chunked import chunked_gated_linear, gated_linear_step
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .recurrence import CHUNK, check_heads, gated_macs
from .rmsnorm import RootMeanSquareNorm

__all__ = ["GLA", "GatedLinearAttention"]


class GatedLinearAttention(nn.Module):
    """`S_t = diag(a_t) S_{t-1} + k_t^T v_t`, `o_t = scale q_t S_t` with `a_t = sigmoid(x W_1 W_2 + b)^(1 / temperature)`,
    then a norm over each head, a SiLU gate and a projection."""

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, rank: int, temperature: float, gate: bool = True,
                 chunk: int = 32):
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.temperature, self.chunk = heads, key_dim, value_dim, temperature, chunk
        self.query = nn.Linear(width, heads * key_dim, bias=False)
        self.key = nn.Linear(width, heads * key_dim, bias=False)
        self.value = nn.Linear(width, heads * value_dim, bias=False)
        self.decay_down = nn.Linear(width, rank, bias=False)
        self.decay_up = nn.Linear(rank, heads * key_dim)
        self.gate = nn.Linear(width, heads * value_dim, bias=False) if gate else None
        self.norm = RootMeanSquareNorm(value_dim, 1e-5)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        return {"memory": torch.zeros(batch, self.heads, self.key_dim, self.value_dim, device=device,
                                      dtype=torch.promote_types(dtype, torch.float32))}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        q_BTHK, k_BTHK, v_BTHV, logit_BTHK = (each.unflatten(-1, (self.heads, -1)) for each in (
            self.query(x_BTD), self.key(x_BTD), self.value(x_BTD), self.decay_up(self.decay_down(x_BTD))))
        logit_BTHK = logit_BTHK.to(torch.promote_types(logit_BTHK.dtype, torch.float32))
        log_decay_BTHK, scale = F.logsigmoid(logit_BTHK) / self.temperature, self.key_dim**-0.5
        if x_BTD.shape[1] == 1 and state is not None:
            o_BTHV, memory = gated_linear_step(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK=log_decay_BTHK, scale=scale,
                                               state_BHKV=state["memory"])
        else:
            o_BTHV, memory = chunked_gated_linear(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK=log_decay_BTHK, scale=scale,
                                                  state_BHKV=None if state is None else state["memory"], chunk=self.chunk)
        o_BTE = self.norm(o_BTHV).flatten(2)
        if self.gate is not None:
            o_BTE = o_BTE * F.silu(self.gate(x_BTD))
        return self.out(o_BTE), {"memory": memory}


@dataclass(frozen=True)
class GLA(Operator):
    """Gated Linear Attention Transformers with Hardware-Efficient Training (Yang et al., 2023).

    heads: memories of (expand_k * width / heads) x (expand_v * width / heads) numbers. rank: of the projection that gives
    the decays, whose logarithm is divided by `temperature`, so that a memory lasts. gate: SiLU output gate. The norm over
    each head is the RMS norm of the authors' code (the paper writes a layer norm).
    """

    heads: Any = 4
    expand_k: Any = 0.5
    expand_v: Any = 1
    rank: Any = 16
    temperature: Any = 16
    gate: Any = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
                                      systems=("S262",))

    def sizes(self, width: int) -> tuple[int, int]:
        """Key and value size of a head."""
        return int(self.expand_k * width / self.heads), int(self.expand_v * width / self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, None, width, where)
        require_whole("rank", self.rank, where)
        for name in ("expand_k", "expand_v"):
            ratio = getattr(self, name)
            size = ratio * width / self.heads
            if size != int(size) or size < 1:
                raise ValueError(f"{name} * width / heads must be a whole number at {where}: got {ratio}, {width} and "
                                 f"{self.heads}; use {name}=1 or fewer heads")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be a positive number at {where}: got {self.temperature}; use 16")

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim = self.sizes(width)
        d, h, r = axis("width", width), axis("heads", self.heads), axis("rank", self.rank)
        v = axis("value_dim", value_dim)
        keys = h * axis("key_dim", key_dim)
        gate = {"gate.weight": param(h * v, d)} if self.gate else {}
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(h * v, d),
                "decay_down.weight": param(r, d), "decay_up.weight": param(keys, r),
                "decay_up.bias": param(keys, init="zeros"), **gate,
                "norm.weight": param(v, share="own", init="ones"), "out.weight": param(d, h * v)}

    def build(self, width: int) -> nn.Module:
        return GatedLinearAttention(width, self.heads, *self.sizes(width), self.rank, float(self.temperature),
                                    bool(self.gate), CHUNK)

    def macs(self, width: int, length: int) -> float:
        """Projections, and the products of the chunks the sequence is cut into."""
        return self.matrix_numel(width) * length + gated_macs(length, self.heads, *self.sizes(width))

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and two passes over the memory: write and read."""
        return float(self.matrix_numel(width) + 2 * self.state_numel(width, length))

    def state_numel(self, width: int, length: int) -> int:
        key_dim, value_dim = self.sizes(width)
        return int(self.heads * key_dim * value_dim)
