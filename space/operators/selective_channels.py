"""A selective state space over the channels of each token.

Legend: B batch, T tokens, D width, G groups of channels (the steps of the scan), P channels of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..axes import Param, axis, renamed
from ..operator import Operator, Source
from .checks import require_divisor, require_whole
from .mamba import Mamba, SelectiveStateSpace

__all__ = ["SelectiveChannelMixer", "SelectiveChannels"]


class SelectiveChannels(nn.Module):
    """A bidirectional Mamba whose sequence is one token's groups of channels."""

    def __init__(self, size: int, inner: int, state: int, rank: int, conv: int):
        super().__init__()
        self.size = size
        self.scan = SelectiveStateSpace(size, inner, state, rank, conv, True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_NGP = x_BTD.reshape(-1, x_BTD.shape[-1] // self.size, self.size)
        return self.scan(x_NGP).reshape(x_BTD.shape)                                 # type: ignore[no-any-return]


@dataclass(frozen=True)
class SelectiveChannelMixer(Operator):
    """The channel mixer of MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection
    (Behrouz, Santacatterina and Zabih, 2024).

    The paper transposes and scans the channels, each a vector over all tokens, which fixes the number of tokens. Here each
    token's channels are scanned by themselves in `width / size` groups of `size`, both ways, so that any length works and
    tokens stay apart. state, expand, conv, dt_rank: as in `Mamba`. The token mixer beside it is `Mamba(bidirectional=True)`,
    and `Stack(layers, DenseAverage())` the weighted averages over all earlier mixers.
    """

    size: Any = 8
    state: Any = 16
    expand: Any = 2
    conv: Any = 4
    dt_rank: Any = None
    kind: ClassVar[str] = "channel"
    fixed: ClassVar[Mapping[str, str]] = {"width": "channels are steps of a sequence", "size": "channels are steps of a "
                                          "sequence", **Mamba.fixed}
    source: ClassVar[Source] = Source("MambaMixer: Efficient Selective State Space Models with Dual Token and Channel "
                                      "Selection", 2024, options=("S350",))

    def scan(self) -> Mamba:
        """The scan over one token's groups."""
        return Mamba(self.state, self.expand, self.conv, self.dt_rank, bidirectional=True)

    def check(self, width: int, where: str) -> None:
        require_whole("size", self.size, where)
        require_divisor("size", self.size, "width", width, where)
        self.scan().check(self.size, where)

    def axes(self, width: int) -> dict[str, Param]:
        inside = self.scan().axes(self.size)
        return {f"scan.{name}": renamed(part, "width", axis("size", self.size)) for name, part in inside.items()}

    def build(self, width: int) -> nn.Module:
        mamba = self.scan()
        return SelectiveChannels(self.size, mamba.inner(self.size), self.state, mamba.rank(self.size), self.conv or 0)

    def macs(self, width: int, length: int) -> float:
        return length * self.decode_macs(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        """The scan over the groups of one token."""
        return self.scan().macs(self.size, width // self.size)
