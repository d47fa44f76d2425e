"""Linear attention in which every head forgets at a constant rate.

Legend: B batch, T tokens, D width, H heads, K key_dim, V value_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_recurrence.chunked import chunked_linear_recurrence, linear_recurrence_step
from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .attention import rotate, rotation
from .checks import require_whole
from .recurrence import CHUNK, FEATURES, check_decays, check_heads, features, log_decays, recurrence_macs

__all__ = ["DecayedAttention", "Lightning", "Retention"]

NORMS = ("layer", "rms", "all")


class DecayedAttention(nn.Module):
    """`S_t = decay S_{t-1} + k_t^T v_t`, `o_t = scale q_t S_t`, a norm without gains, a gate, a projection.

    position: "rotary", or "lrpe": [x cos(w t), x sin(w t)] with learned w, so that products turn with the distance.
    norm: "layer" (mean and variance) or "rms" over each head, "rms" over "all" heads together. gate: "silu", "linear" or
    None.
    """

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, log_decay: tuple[float, ...], feature: str,
                 position: str | None, norm: str, gate: str | None, scale: float, rope_base: float = 10000.0,
                 chunk: int = 32):
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.chunk = heads, key_dim, value_dim, chunk
        self.log_decay, self.feature, self.position, self.norm, self.gate_kind = log_decay, feature, position, norm, gate
        self.scale, self.rope_base = scale, rope_base
        self.query = nn.Linear(width, heads * key_dim, bias=False)
        self.key = nn.Linear(width, heads * key_dim, bias=False)
        self.value = nn.Linear(width, heads * value_dim, bias=False)
        self.gate = nn.Linear(width, heads * value_dim, bias=False) if gate else None
        self.frequency = nn.Parameter(torch.empty(heads, key_dim)) if position == "lrpe" else None
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        keys = self.key_dim if self.frequency is None else 2 * self.key_dim
        return {"memory": torch.zeros(batch, self.heads, keys, self.value_dim, device=device,
                                      dtype=torch.promote_types(dtype, torch.float32)), "position": 0}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        length, start = x_BTD.shape[1], 0 if state is None else state["position"]
        q_BTHK = features(self.query(x_BTD).unflatten(-1, (self.heads, -1)), self.feature)
        k_BTHK = features(self.key(x_BTD).unflatten(-1, (self.heads, -1)), self.feature)
        q_BTHK, k_BTHK = self.placed(q_BTHK, start), self.placed(k_BTHK, start)
        v_BTHV = self.value(x_BTD).unflatten(-1, (self.heads, -1)).to(q_BTHK.dtype)
        log_decay_1TH = torch.tensor(self.log_decay, dtype=v_BTHV.dtype, device=x_BTD.device).expand(1, length, -1)
        if length == 1 and state is not None:
            o_BTHV, memory = linear_recurrence_step(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH=log_decay_1TH, scale=self.scale,
                                                    state_BHKV=state["memory"])
        else:
            o_BTHV, memory = chunked_linear_recurrence(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH=log_decay_1TH, scale=self.scale,
                                                       state_BHKV=None if state is None else state["memory"],
                                                       chunk=self.chunk)
        o_BTE = self.normed(o_BTHV).to(x_BTD.dtype)
        if self.gate is not None:
            gate_BTE = self.gate(x_BTD)
            o_BTE = o_BTE * (F.silu(gate_BTE) if self.gate_kind == "silu" else gate_BTE)
        return self.out(o_BTE), {"memory": memory, "position": start + length}

    def placed(self, x_BTHK: Tensor, start: int) -> Tensor:
        """Queries or keys with their positions."""
        if self.frequency is not None:
            time_T11 = torch.arange(start, start + x_BTHK.shape[1], device=x_BTHK.device, dtype=x_BTHK.dtype)[:, None, None]
            angle_THK = time_T11 * self.frequency.to(x_BTHK.dtype)
            return torch.cat([x_BTHK * angle_THK.cos(), x_BTHK * angle_THK.sin()], dim=-1)
        if self.position == "rotary":
            return rotate(x_BTHK, *rotation(start, x_BTHK.shape[1], self.key_dim // 2, self.rope_base, x_BTHK))
        return x_BTHK

    def normed(self, o_BTHV: Tensor) -> Tensor:
        """All heads side by side, normalised."""
        if self.norm == "layer":
            return F.layer_norm(o_BTHV, o_BTHV.shape[-1:], eps=1e-5).flatten(2)
        o = o_BTHV if self.norm == "rms" else o_BTHV.flatten(2)
        o = F.rms_norm(o, o.shape[-1:], eps=1e-6)
        return o.flatten(2) if self.norm == "rms" else o


class _Decayed(Operator, abstract=True):
    """Axes, checks and costs of attention with a constant decay per head."""

    heads: Any
    decay: Any
    decay_scale: Any
    norm: Any
    position: Any
    gate: Any
    feature: Any
    keeps_zero: ClassVar[bool] = True

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Heads, as each has a decay of its own, and the pairs of rotary positions."""
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
        return {"heads": "a head has its own decay", **(pairs if self.position == "rotary" else {})}

    def sizes(self, width: int) -> tuple[int, int]:
        """Key and value size of a head."""
        raise TypeError(f"{type(self).__name__} must define sizes(width)")

    def check(self, width: int, where: str) -> None:
        key_dim, _ = self.sizes(width) if self.heads else (0, 0)
        if self.norm not in NORMS:
            raise ValueError(f"{unknown('norm', self.norm, NORMS)} (at {where})")
        if self.position not in (None, "rotary", "lrpe"):
            raise ValueError(f"{unknown('position', self.position, ('rotary', 'lrpe', 'None'))} (at {where})")
        if key_dim % 2:
            raise ValueError(f"the key size of a head must be even, for rotary pairs, at {where}: got {key_dim}; choose "
                             "heads so that width / heads is even, or set it")
        check_decays(self.decay, self.heads, self.decay_scale, where)

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim = self.sizes(width)
        d, h = axis("width", width), axis("heads", self.heads)
        # Pairs whatever the position, so that all positions of a space share their weights.
        keys, values = h * axis("half", 2) * axis("pairs", key_dim // 2), h * axis("value_dim", value_dim)
        declared = {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                    "out.weight": param(d, values)}
        if self.gate:
            declared["gate.weight"] = param(values, d)
        if self.position == "lrpe":
            declared["frequency"] = param(h, axis("half", 2) * axis("pairs", key_dim // 2),
                                          init=Init("log_uniform", low=1e-8, high=1.0))
        return declared

    def _rows(self, width: int) -> int:
        return self.sizes(width)[0] * (2 if self.position == "lrpe" else 1)

    def macs(self, width: int, length: int) -> float:
        """Projections, and the products of the chunks the sequence is cut into."""
        return self.matrix_numel(width) * length + recurrence_macs(length, self.heads, self._rows(width),
                                                                   self.sizes(width)[1])

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and two passes over the memory: write and read."""
        return float(self.matrix_numel(width) + 2 * self.state_numel(width, length))

    def state_numel(self, width: int, length: int) -> int:
        return int(self.heads * self._rows(width) * self.sizes(width)[1])


@dataclass(frozen=True)
class Retention(_Decayed):
    """Retentive Network: A Successor to Transformer for Large Language Models (Sun et al., 2023).

    heads: memories of key_dim x (expand_v * key_dim) numbers; key_dim defaults to width / heads. decay: "retnet", head h
    keeping 1 - 2^(-5 - h) of its memory a token, or a number in (0, 1] per head. decay_scale: exponent of all decays.
    position: "rotary" as in the paper, whose xPos is that with the decay of the head. norm: over each head, "layer" as
    in the paper or "rms" as in the authors' code, without gains. gate: SiLU output gate.
    """

    heads: Any = 4
    key_dim: Any = None
    expand_v: Any = 2
    decay: Any = "retnet"
    decay_scale: Any = 1.0
    position: Any = "rotary"
    norm: Any = "layer"
    gate: Any = True
    feature: ClassVar[str] = "identity"                                               # type: ignore[misc]
    source: ClassVar[Source] = Source("Retentive Network: A Successor to Transformer for Large Language Models", 2023)

    def sizes(self, width: int) -> tuple[int, int]:
        key_dim = self.key_dim or width // self.heads
        return key_dim, key_dim * self.expand_v

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.key_dim, width, where)
        require_whole("expand_v", self.expand_v, where, instead="use 1 or 2")
        super().check(width, where)

    def build(self, width: int) -> nn.Module:
        key_dim, value_dim = self.sizes(width)
        return DecayedAttention(width, self.heads, key_dim, value_dim, log_decays(self.decay, self.heads, self.decay_scale),
                                self.feature, self.position, self.norm, "silu" if self.gate else None, key_dim**-0.5,
                                chunk=CHUNK)


@dataclass(frozen=True)
class Lightning(_Decayed):
    """The mixer of TransNormerLLM: Scaling TransNormer to 175 Billion Parameters (Qin et al., 2023), run by chunks as
    Lightning Attention-2 (Qin et al., 2024).

    decay: "linear", exp(-8 h / H) for head h of H as in the paper; "geometric", the slopes of ALiBi as in the authors'
    code; or a number in (0, 1] per head. decay_scale: its exponent, 1 - l / L in layer l of L. position: "lrpe" (first
    layer), "rotary" or None (the others). feature: of queries and keys. norm: RMS over "all" heads together, or over each
    ("rms"). gate: the factor x W_u without an activation. The channel mixer of the paper is `SwiGLU(activation=None)`.
    """

    heads: Any = 4
    head_dim: Any = None
    decay: Any = "linear"
    decay_scale: Any = 1.0
    position: Any = "lrpe"
    feature: Any = "silu"
    norm: Any = "all"
    gate: Any = True
    source: ClassVar[Source] = Source("Scaling TransNormer to 175 Billion Parameters", 2023, systems=("S380",))

    def sizes(self, width: int) -> tuple[int, int]:
        head_dim = self.head_dim or width // self.heads
        return head_dim, head_dim

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        if self.feature not in FEATURES or self.feature == "taylor":
            raise ValueError(f"{unknown('feature', self.feature, set(FEATURES) - {'taylor'})} (at {where})")
        super().check(width, where)

    def build(self, width: int) -> nn.Module:
        key_dim, value_dim = self.sizes(width)
        return DecayedAttention(width, self.heads, key_dim, value_dim, log_decays(self.decay, self.heads, self.decay_scale),
                                self.feature, self.position, self.norm, "linear" if self.gate else None, 1.0, chunk=CHUNK)
