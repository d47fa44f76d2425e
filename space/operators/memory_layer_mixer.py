"""Softmax attention whose projections are tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .attention import Attention
from .causal_attention import CausalAttention
from .checks import require_divisor, require_positive
from .memory_layers import TableLookup, check_bits

__all__ = ["MemoryLayerMixer", "TableAttention"]


class TableAttention(CausalAttention):
    """Causal self-attention with `TableLookup` for queries, keys, values and the output."""

    def __init__(self, width: int, heads: int, head_dim: int, rope_base: float, bits: int,
                 temperature: float):
        super().__init__(width, heads, heads, head_dim, rope_base=rope_base)
        self.query = TableLookup(width, bits, heads * head_dim, temperature)                      # type: ignore[assignment]
        self.key = TableLookup(width, bits, heads * head_dim, temperature)                        # type: ignore[assignment]
        self.value = TableLookup(width, bits, heads * head_dim, temperature)                      # type: ignore[assignment]
        self.out = TableLookup(heads * head_dim, bits, width, temperature)                        # type: ignore[assignment]


@dataclass(frozen=True)
class MemoryLayerMixer(Operator):
    """MemoryFormer's attention (Ding et al., 2024): memory layers give queries, keys, values and the output, so that only
    scores and their values are matrix products.

    bits, temperature: as of `MemoryLayers`; bits must divide the width and the heads' entries. heads, head_dim,
    rope_base: as of `Attention`; rotary positions are this package's, in the queries and keys that tables gave.
    """

    heads: Any = 4
    head_dim: Any = None
    bits: Any = 8
    temperature: Any = 1.0
    rope_base: float = 10000.0
    chooses: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "width": "channels are bits of codes", "chunks": "chunks follow one another in the width",
        "codes": "a pattern of signs", "kv_heads": "entries of heads are bits of codes",
        "head_dim": "entries of heads are bits of codes", "head_chunks": "chunks follow one another in the heads",
        "half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
    source: ClassVar[Source] = Source("MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers",
                                      2024, systems=("S294",))

    def _plain(self) -> Attention:
        return Attention(heads=self.heads, head_dim=self.head_dim, rope_base=self.rope_base)

    def _inner(self, width: int) -> int:
        return int(self.heads * self._plain().sizes(width)[2])

    def check(self, width: int, where: str) -> None:
        self._plain().check(width, where)
        check_bits(self.bits, self.bits, where)
        require_divisor("bits", self.bits, "width", width, where)
        require_divisor("bits", self.bits, "heads * head_dim", self._inner(width), where)
        require_positive("temperature", self.temperature, where)

    def axes(self, width: int) -> dict[str, Param]:
        plain, codes = self._plain().axes(width), axis("codes", 2**self.bits)
        chunks, back = axis("chunks", width // self.bits), axis("head_chunks", self._inner(width) // self.bits)

        def table(count: Any, name: str) -> Param:
            return param(count, codes, plain[f"{name}.weight"].dims[0], init=Init("normal", gain=count.size ** -0.5))

        return {"query.table": table(chunks, "query"), "key.table": table(chunks, "key"),
                "value.table": table(chunks, "value"), "out.table": table(back, "out")}

    def build(self, width: int) -> nn.Module:
        head_dim = self._plain().sizes(width)[2]
        return TableAttention(width, self.heads, head_dim, self.rope_base, self.bits, self.temperature)

    def _read(self, width: int) -> int:
        """Multiply-adds of a token's tables: a vector per chunk, four times."""
        return int(4 * width // self.bits * self._inner(width))

    def macs(self, width: int, length: int) -> float:
        plain = self._plain()
        return self._read(width) * length + plain.macs(width, length) - plain.matrix_numel(width) * length

    def decode_macs(self, width: int, length: int) -> float:
        plain = self._plain()
        return self._read(width) + plain.decode_macs(width, length) - plain.matrix_numel(width)

    def state_numel(self, width: int, length: int) -> int:
        return self._plain().state_numel(width, length)
