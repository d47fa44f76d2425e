"""Tables that are read by the signs of their input, in place of matrices.

Legend: B batch, T tokens, N tokens of all sequences, D width, K chunks, C channels of a chunk: bits of its code,
I inner channels, O channels read from a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_positive, require_whole

__all__ = ["MemoryLayers", "TableFeedForward", "TableLookup", "check_bits"]


class TableLookup(nn.Module):
    """The sum over chunks of p(z) T[code(z)]: bit i of the code says whether entry i of the chunk z is positive, and
    p(z) = product of sigmoid(2 |z_i| / temperature) is how sure that is."""

    def __init__(self, width: int, bits: int, out: int, temperature: float):
        super().__init__()
        self.bits, self.temperature = bits, temperature
        self.table = nn.Parameter(torch.empty(width // bits, 2**bits, out))

    def forward(self, x_BTD: Tensor) -> Tensor:
        chunks, entries, out = self.table.shape
        z_NKC = x_BTD.reshape(-1, chunks, self.bits)
        place_C = 2 ** torch.arange(self.bits, device=z_NKC.device)
        first_K = entries * torch.arange(chunks, device=z_NKC.device)
        code_NK = ((z_NKC > 0) * place_C).sum(-1) + first_K
        weight_NK = torch.sigmoid(2 / self.temperature * z_NKC.abs()).prod(-1)
        y_NO = F.embedding_bag(code_NK, self.table.reshape(-1, out), per_sample_weights=weight_NK, mode="sum")
        return y_NO.view(*x_BTD.shape[:-1], out)


class TableFeedForward(nn.Module):
    """Two tables one after the other, with a norm between; no matrix, and no activation beyond the signs."""

    def __init__(self, width: int, bits: int, inner_bits: int, temperature: float):
        super().__init__()
        inner = width // bits * inner_bits
        self.first = TableLookup(width, bits, inner, temperature)
        self.gain = nn.Parameter(torch.empty(inner))
        self.shift = nn.Parameter(torch.empty(inner))
        self.second = TableLookup(inner, inner_bits, width, temperature)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTI = self.first(x_BTD)
        y_BTD: Tensor = self.second(F.layer_norm(h_BTI, (h_BTI.shape[-1],), self.gain, self.shift))
        return y_BTD


def check_bits(bits: Any, most: int, where: str) -> None:
    """Raise ValueError unless `bits` is a whole number, and `most`, the largest number of bits, within reason."""
    require_whole("bits", bits, where)
    if most > 16:
        raise ValueError(f"bits must be at most 16 at {where}: got {most}; a table of 2^16 vectors has 65,536 of them per "
                         "chunk")


@dataclass(frozen=True)
class MemoryLayers(Operator):
    """MemoryFormer (Ding et al., 2024): memory layers in place of the matrices of a feed-forward layer.

    bits: channels of a chunk, which read one of 2^bits vectors of its table; it must divide width. inner_bits: the same
    in the second layer, whose input has as many chunks (default bits + 2). temperature: how fast a vector gains weight as
    the input leaves zero. Parameters grow as 2^bits; the multiply-adds are those of adding up what was read, one vector
    per chunk. Signs have no gradient: the weights of the vectors carry it. `MemoryLayerMixer` is attention with
    projections of this kind.
    """

    bits: Any = 8
    inner_bits: Any = None
    temperature: Any = 1.0
    kind: ClassVar[str] = "channel"
    chooses: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "width": "channels are bits of codes", "chunks": "chunks follow one another in the width",
        "codes": "a pattern of signs", "inner_codes": "a pattern of signs", "inner_bits": "a bit of a code"}
    source: ClassVar[Source] = Source("MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers",
                                      2024, systems=("S294",))

    def inner(self) -> int:
        """Bits of a chunk of the second layer."""
        return int(self.inner_bits or self.bits + 2)

    def check(self, width: int, where: str) -> None:
        if self.inner_bits is not None:
            require_whole("inner_bits", self.inner_bits, where, instead="use None for bits + 2")
        require_whole("bits", self.bits, where)
        check_bits(self.bits, max(self.bits, self.inner()), where)
        require_divisor("bits", self.bits, "width", width, where)
        require_positive("temperature", self.temperature, where)

    def axes(self, width: int) -> dict[str, Param]:
        count = width // self.bits
        chunks, blocks = axis("chunks", count), axis("blocks", count)
        inner = blocks * axis("inner_bits", self.inner())
        read = Init("normal", gain=count ** -0.5)
        return {"first.table": param(chunks, axis("codes", 2**self.bits), inner, init=read),
                "gain": param(inner, share="own", init="ones"), "shift": param(inner, share="own", init="zeros"),
                "second.table": param(blocks, axis("inner_codes", 2**self.inner()), axis("width", width), init=read)}

    def build(self, width: int) -> nn.Module:
        return TableFeedForward(width, self.bits, self.inner(), self.temperature)

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        return tokens_of(length) * self.decode_macs(width, 0)

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """Every number of the vectors that are read, times its weight; no matrix product."""
        chunks = width // self.bits
        return float(chunks * (chunks * self.inner() + width))
