"""Two residual streams, one that mixers write to and one that channel mixers write to.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..graph import RESIDUAL
from ..operator import Source
from .residual import Residual, residual_label
from .units import UnitLayers

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DualLayers", "DualStream"]

READS = ("both", "token", "context")


class DualLayers(UnitLayers):
    """The token stream starts as the input, the context stream as zeros; their sum leaves.

    writes: for every unit, whether it writes to the context stream. mixer_reads, channel_reads: what units that write to the
    token stream, and to the context stream, read: "both" is the sum.
    """

    def __init__(self, layers: list[nn.Module], writes: list[bool], mixer_reads: str, channel_reads: str):
        super().__init__(layers)
        self.writes, self.mixer_reads, self.channel_reads = writes, mixer_reads, channel_reads

    def begin(self, x_BTD: Tensor) -> list[Tensor]:
        return [x_BTD, torch.zeros_like(x_BTD)]

    def read(self, k: int, held: list[Tensor]) -> Tensor:
        reads = self.channel_reads if self.writes[k] else self.mixer_reads
        if reads == "both":
            return held[0] + held[1]
        return held[0] if reads == "token" else held[1]

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        return [held[0], held[1] + y_BTD] if self.writes[k] else [held[0] + y_BTD, held[1]]

    def finish(self, held: list[Tensor]) -> Tensor:
        return held[0] + held[1]


@dataclass(frozen=True)
class DualStream(Residual):
    """The Dual-Stream Transformer: a token stream that only mixers write to, a context stream that only channel mixers do.

    mixer_reads, channel_reads: "both" (their sum), "token" or "context". What each reads is a choice here; with the sum for
    both the function is that of the plain stream, and what is gained is that the two parts can be told apart. A part that
    is no block writes to the token stream.
    """

    mixer_reads: Any = "both"
    channel_reads: Any = "token"
    proof: ClassVar[str] = "tests/space/test_residuals.py -k dual_streams"
    source: ClassVar[Source] = Source("The Dual-Stream Transformer: Channelized Architecture for Interpretable Language "
                                      "Modeling", 2026, options=("S024",))

    def check(self, where: str) -> None:
        for name in ("mixer_reads", "channel_reads"):
            if getattr(self, name) not in READS:
                raise ValueError(f"{name} is one of {', '.join(READS)} at {where}: got {getattr(self, name)!r}")

    def join_roles(self, layers: list[nn.Module], roles: list[str]) -> nn.Module:
        return DualLayers(layers, [role == "channel" for role in roles], self.mixer_reads, self.channel_reads)

    def sketch_roles(self, draft: Draft, stream: int, place: str, units: list[Any], roles: list[str]) -> int:
        """Two streams side by side, then their sum."""
        streams: list[int | None] = [stream, None]
        for unit, role in zip(units, roles, strict=True):
            reads = self.channel_reads if role == "channel" else self.mixer_reads
            y, into = unit(self._read(draft, streams, reads)), int(role == "channel")
            before = streams[into]
            if before is not None:
                total = draft.node("sum", "sum", "", None, y)
                draft.join(before, total, RESIDUAL)
                y = total
            streams[into] = y
        last = draft.node(residual_label(self), "sum", place, None, streams[0])
        if streams[1] is not None:
            draft.join(streams[1], last, RESIDUAL)
        return last

    def _read(self, draft: Draft, streams: list[int | None], reads: str) -> int:
        token, context = streams
        assert token is not None
        if reads == "token" or (reads == "both" and context is None):
            return token
        if reads == "context":
            return draft.node("zeros", "streams") if context is None else context
        total = draft.node("sum", "sum", "", None, token)
        draft.join(context, total, RESIDUAL)                                          # type: ignore[arg-type]
        return total
