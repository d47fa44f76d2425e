"""DeltaNet: a matrix memory corrected by the delta rule, which forgets only what it overwrites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..axes import Param
from ..operator import Operator, Source
from .gated_delta import GatedDeltaNet

__all__ = ["DeltaNet"]


@dataclass(frozen=True)
class DeltaNet(Operator):
    """Parallelizing Linear Transformers with the Delta Rule over Sequence Length (Yang et al., 2024).

    Queries, keys and values pass a short convolution and SiLU, queries and keys have unit length, outputs an RMS norm
    per head. It is `GatedDeltaNet(decay=False, gate=False)`, kernel and module included, under its own name. heads:
    memories of head_dim x (expand_v * head_dim) numbers; head_dim defaults to width / heads. conv: taps; None for none.
    allow_neg_eigval: writing strengths up to 2 (Grazzi et al., 2024).

    The paper's hybrids are bodies: `(Block(mixer=DeltaNet()), Block(mixer=Attention(window=2048)))` in turn, or a whole
    attention layer second and in the middle.
    """

    heads: Any = 2
    head_dim: Any = None
    expand_v: Any = 1
    conv: Any = 4
    allow_neg_eigval: Any = False
    source: ClassVar[Source] = Source("Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024,
                                      systems=("S248",))

    def gated(self) -> GatedDeltaNet:
        """The same operator as a Gated DeltaNet whose gates are off."""
        return GatedDeltaNet(self.heads, self.head_dim, self.expand_v, self.conv, gate=False,
                             allow_neg_eigval=self.allow_neg_eigval, decay=False)

    def check(self, width: int, where: str) -> None:
        self.gated().check(width, where)

    def axes(self, width: int) -> dict[str, Param]:
        return self.gated().axes(width)

    def build(self, width: int) -> nn.Module:
        return self.gated().build(width)

    def macs(self, width: int, length: int) -> float:
        return self.gated().macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        return self.gated().decode_macs(width, length)

    def state_numel(self, width: int, length: int) -> int:
        return self.gated().state_numel(width, length)
