"""Linear attention: a feature map instead of the softmax, so that the past is one matrix per head.

Legend: B batch, T tokens, D width, H heads, K key_dim, V value_dim, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_recurrence.chunked import chunked_linear_recurrence, linear_recurrence_step
from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .recurrence import CHUNK, FEATURES, POSITIVE, check_heads, features, num_features, recurrence_macs
from .rmsnorm import RootMeanSquareNorm

__all__ = ["Based", "BidirectionalFeatureAttention", "FeatureAttention", "LinearAttention"]


class FeatureAttention(nn.Module):
    """`o_t = f(q_t) S_t / (f(q_t) z_t)` with `S_t = sum of f(k_s)^T v_s` and `z_t = sum of f(k_s)` over s <= t.

    z is one more column of values that are all 1. Sums are float32 at least: in half precision they would overflow
    before the division.
    """

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, feature: str, normalise: bool = True,
                 output_norm: bool = False, chunk: int = 32):
        super().__init__()
        self.heads, self.value_dim, self.feature, self.normalise, self.chunk = heads, value_dim, feature, normalise, chunk
        self.num_features = num_features(feature, key_dim)
        self.query = nn.Linear(width, heads * key_dim, bias=False)
        self.key = nn.Linear(width, heads * key_dim, bias=False)
        self.value = nn.Linear(width, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, width, bias=False)
        self.norm = RootMeanSquareNorm(value_dim) if output_norm else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        columns = self.value_dim + int(self.normalise)
        return {"memory": torch.zeros(batch, self.heads, self.num_features, columns, device=device,
                                      dtype=torch.promote_types(dtype, torch.float32))}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        q_BTHF, k_BTHF, v_BTHV = self.projected(x_BTD)
        log_decay_1TH = v_BTHV.new_zeros(1, v_BTHV.shape[1], self.heads)
        if x_BTD.shape[1] == 1 and state is not None:
            o_BTHV, memory = linear_recurrence_step(q_BTHF, k_BTHF, v_BTHV, log_decay_BTH=log_decay_1TH,
                                                    state_BHKV=state["memory"])
        else:
            o_BTHV, memory = chunked_linear_recurrence(q_BTHF, k_BTHF, v_BTHV, log_decay_BTH=log_decay_1TH, chunk=self.chunk,
                                                       state_BHKV=None if state is None else state["memory"])
        return self.read(o_BTHV, x_BTD), {"memory": memory}

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values with the column that counts."""
        q_BTHF = features(self.query(x_BTD).unflatten(-1, (self.heads, -1)), self.feature)
        k_BTHF = features(self.key(x_BTD).unflatten(-1, (self.heads, -1)), self.feature)
        v_BTHV = self.value(x_BTD).unflatten(-1, (self.heads, -1)).to(q_BTHF.dtype)
        return q_BTHF, k_BTHF, F.pad(v_BTHV, (0, 1), value=1.0) if self.normalise else v_BTHV

    def read(self, o_BTHV: Tensor, x_BTD: Tensor) -> Tensor:
        """Divide by the weights' sum, then norm and projection."""
        if self.normalise:
            o_BTHV = o_BTHV[..., :-1] / (o_BTHV[..., -1:] + 1e-6)
        if self.norm is not None:
            o_BTHV = self.norm(o_BTHV.to(self.norm.weight.dtype))
        y_BTD: Tensor = self.out(o_BTHV.flatten(2).to(x_BTD.dtype))
        return y_BTD


class BidirectionalFeatureAttention(FeatureAttention):
    """The same with the sums over all tokens."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BTHF, k_BTHF, v_BTHV = self.projected(x_BTD)
        memory_BHFV = k_BTHF.permute(0, 2, 3, 1) @ v_BTHV.transpose(1, 2)
        return self.read((q_BTHF.transpose(1, 2) @ memory_BHFV).transpose(1, 2), x_BTD)


class _Linear(Operator, abstract=True):
    """Sizes, axes and costs of linear attention, given `heads`, `head_dim`, `key_dim`, `feature` and `normalise`."""

    heads: Any
    head_dim: Any
    key_dim: Any
    keeps_zero: ClassVar[bool] = True
    feature: Any
    normalise: Any = True
    bidirectional: Any = False
    output_norm: Any = False

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(key_dim, value_dim, features) of a head."""
        head_dim = self.head_dim or width // self.heads
        key_dim = self.key_dim or head_dim
        return key_dim, head_dim, num_features(self.feature, key_dim)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        if self.key_dim is not None:
            require_whole("key_dim", self.key_dim, where)
        if self.feature not in FEATURES:
            raise ValueError(f"{unknown('feature', self.feature, FEATURES)} (at {where})")
        if self.normalise and self.feature not in POSITIVE:
            raise ValueError(f"normalise needs features that are not negative at {where}: got feature={self.feature!r}; "
                             f"use one of {', '.join(POSITIVE)}, or normalise=False")

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim, _ = self.sizes(width)
        d, h, v = axis("width", width), axis("heads", self.heads), axis("value_dim", value_dim)
        keys = h * axis("key_dim", key_dim)
        norm = {"norm.weight": param(v, share="own", init="ones")} if self.output_norm else {}
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(h * v, d),
                "out.weight": param(d, h * v), **norm}

    def build(self, width: int) -> nn.Module:
        key_dim, value_dim, _ = self.sizes(width)
        kind = BidirectionalFeatureAttention if self.bidirectional else FeatureAttention
        return kind(width, self.heads, key_dim, value_dim, self.feature, bool(self.normalise), bool(self.output_norm), CHUNK)

    def memory_numel(self, width: int) -> int:
        """Entries of the sums of all heads."""
        _, value_dim, num = self.sizes(width)
        return int(self.heads * num * (value_dim + bool(self.normalise)))

    def macs(self, width: int, length: int) -> float:
        """Projections, and the products of the chunks; both ways, one pass to write the sums and one to read them."""
        _, value_dim, num = self.sizes(width)
        if self.bidirectional:
            return float(length * (self.matrix_numel(width) + 2 * self.memory_numel(width)))
        return self.matrix_numel(width) * length + recurrence_macs(length, self.heads, num, value_dim + bool(self.normalise))

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and two passes over the sums: write and read; a whole pass where tokens look both ways."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        return float(self.matrix_numel(width) + 2 * self.memory_numel(width))

    def state_numel(self, width: int, length: int) -> int:
        return 0 if self.bidirectional else self.memory_numel(width)


@dataclass(frozen=True)
class LinearAttention(_Linear):
    """Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention (Katharopoulos et al., 2020).

    feature: the map of queries and keys: "elu" (elu + 1), "relu", "softmax" over the entries of a head, "taylor" (see
    `Based`), "silu" or "identity". normalise: divide by the sum of the weights, which must not be negative. output_norm:
    an RMS norm of each head's output, the other way to keep it bounded (The Devil in Linear Transformer, Qin et al.,
    2022). key_dim: entries of queries and keys, default head_dim, whose default is width / heads. bidirectional: the sums
    run over all tokens.
    """

    heads: Any = 4
    head_dim: Any = None
    key_dim: Any = None
    feature: Any = "elu"
    normalise: Any = True
    bidirectional: Any = False
    output_norm: Any = False
    source: ClassVar[Source] = Source("Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020)


@dataclass(frozen=True)
class Based(_Linear):
    """The linear layer of BASED: Simple linear attention language models balance the recall-throughput tradeoff (Arora et
    al., 2024): features whose products are 1 + s + s^2 / 2 with s = q . k / sqrt(key_dim), and their sum below.

    key_dim: entries of queries and keys, 16; the state holds 1 + key_dim + key_dim^2 rows a head, which sets the recall.
    The hybrid of the paper has `Attention(window=64)` in other layers: `presets.based()`.
    """

    heads: Any = 4
    key_dim: Any = 16
    head_dim: Any = None
    feature: ClassVar[str] = "taylor"                                                 # type: ignore[misc]
    patterns: ClassVar[tuple[str, ...]] = ("causal self",)
    source: ClassVar[Source] = Source("Simple linear attention language models balance the recall-throughput tradeoff", 2024,
                                      systems=("S322",))
