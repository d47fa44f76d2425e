"""The operator that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..axes import Param
from ..operator import Operator, Source

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity(Operator):
    """As mixer or channel it removes the sublayer with its norm and residual; depth becomes a choice per layer."""

    kind: ClassVar[str] = "identity"
    source: ClassVar[Source] = Source("Deep Networks with Stochastic Depth (layer removal as an option)", 2016)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.Identity()
