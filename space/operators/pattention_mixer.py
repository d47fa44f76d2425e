"""Softmax attention whose projections are attention to parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .attention import Attention
from .causal_attention import CausalAttention
from .checks import require_positive
from .mlp import check_ratio, hidden_size
from .pattention import ParameterAttention

__all__ = ["PattentionMixer", "TokenizedAttention"]

PROJECTIONS = ("query", "key", "value", "out")


class TokenizedAttention(CausalAttention):
    """Causal self-attention with `ParameterAttention` for queries, keys, values and the output."""

    def __init__(self, width: int, heads: int, head_dim: int, rope_base: float, tokens: int,
                 scale: float | None):
        super().__init__(width, heads, heads, head_dim, rope_base=rope_base)
        self.query = ParameterAttention(width, tokens, heads * head_dim, scale)                   # type: ignore[assignment]
        self.key = ParameterAttention(width, tokens, heads * head_dim, scale)                     # type: ignore[assignment]
        self.value = ParameterAttention(width, tokens, heads * head_dim, scale)                   # type: ignore[assignment]
        self.out = ParameterAttention(heads * head_dim, tokens, width, scale)                     # type: ignore[assignment]


@dataclass(frozen=True)
class PattentionMixer(Operator):
    """TokenFormer's attention (Wang et al., 2024): every projection is a `Pattention`, so that all of a network's matrices
    grow by appending parameter tokens.

    ratio: parameter tokens of each projection over width, rounded up to a multiple of 8; the paper has 1. scale: as of
    `Pattention`. heads, head_dim, rope_base: as of `Attention`.
    """

    heads: Any = 4
    head_dim: Any = None
    ratio: Any = 1
    scale: Any = None
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
    source: ClassVar[Source] = Source("TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters", 2024,
                                      systems=("S406",))

    def _plain(self) -> Attention:
        return Attention(heads=self.heads, head_dim=self.head_dim, rope_base=self.rope_base)

    def check(self, width: int, where: str) -> None:
        self._plain().check(width, where)
        check_ratio(self.ratio, where)
        if self.scale is not None:
            require_positive("scale", self.scale, where, instead="use None for the root of the number of tokens")

    def axes(self, width: int) -> dict[str, Param]:
        """Each matrix of `Attention`, through parameter tokens."""
        plain, declared = self._plain().axes(width), {}
        for name in PROJECTIONS:
            out, into = plain[f"{name}.weight"].dims
            tokens = axis(f"{name}_tokens", hidden_size(self.ratio, width))
            declared[f"{name}.key.weight"] = param(tokens, into)
            declared[f"{name}.value.weight"] = param(out, tokens)
        return declared

    def build(self, width: int) -> nn.Module:
        head_dim = self._plain().sizes(width)[2]
        return TokenizedAttention(width, self.heads, head_dim, self.rope_base,
                                  hidden_size(self.ratio, width), self.scale)

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values over the visible pairs only."""
        plain = self._plain()
        return self.matrix_numel(width) * length + plain.macs(width, length) - plain.matrix_numel(width) * length

    def decode_macs(self, width: int, length: int) -> float:
        plain = self._plain()
        return self.matrix_numel(width) + plain.decode_macs(width, length) - plain.matrix_numel(width)

    def state_numel(self, width: int, length: int) -> int:
        return self._plain().state_numel(width, length)
