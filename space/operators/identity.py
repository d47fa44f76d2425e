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
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("What Matters in Transformers? Not All Attention is Needed", 2024,
                                      options=("S301",))

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.Identity()
