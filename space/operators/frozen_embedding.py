"""An embedding that is not learned: features that tokens have from the start.

Legend: B batch, T tokens, D width, V vocabulary, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .feature_table import SIDE, feature_tables

__all__ = ["FrozenEmbedding", "FrozenTable", "ProjectedTable"]

EPS = 1e-6


def looked_up(ids_BT: Tensor, table_VF: Tensor) -> Tensor:
    """Rows of a table, each over its root mean square."""
    x_BTF = F.embedding(ids_BT, table_VF)
    return x_BTF * torch.rsqrt(x_BTF.square().mean(-1, keepdim=True) + EPS)


class FrozenTable(nn.Module):
    """Rows of a table that stays as it is."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocab, width), requires_grad=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return looked_up(ids_BT, self.table)


class ProjectedTable(nn.Module):
    """Rows of a table that stays as it is, projected by a matrix that is learned."""

    def __init__(self, vocab: int, features: int, width: int):
        super().__init__()
        self.features = nn.Parameter(torch.empty(vocab, features), requires_grad=False)
        self.projection = nn.Linear(features, width, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD: Tensor = self.projection(looked_up(ids_BT, self.features))
        return x_BTD


@dataclass(frozen=True)
class FrozenEmbedding(Operator):
    """Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode Representations (Bochkov, 2025):
    what a token looks like, and nothing learned. ids (B, T) to (B, T, width).

    table: a name of `feature_tables`: "glyphs", principal components of pictures of characters, "bits" of the number of a
    token, or one that was registered; it is computed where weights start. features: columns of the table, projected to the
    width by a learned matrix; None for as many as the width, which enter as they are, as in the paper; a narrower network has
    the first of them. The table is a statistic: training leaves it, and it is no parameter; rows have a mean square of 1.
    The head has a matrix of its own: `LanguageHead(tied=False)`.
    """

    vocab: Any
    table: Any = "glyphs"
    features: Any = None
    kind: ClassVar[str] = "embedding"
    cannot_tie: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/operators/test_frozen_embedding.py"
    source: ClassVar[Source] = Source("Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual "
                                      "Unicode Representations", 2025, systems=("S419",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Tokens, and the components of the table."""
        return {"vocab": "a row is a token", "width" if self.features is None else "features": "a component of the table"}

    def check(self, width: int, where: str) -> None:
        require_whole("vocab", self.vocab, where, instead="use 256 for bytes")
        if self.table not in feature_tables.names():
            raise ValueError(f"{unknown('feature table', self.table, feature_tables.names())} (at {where})")
        if self.features is not None:
            require_whole("features", self.features, where, instead="use None for as many as the width")
        most = min(self.vocab, SIDE * SIDE)
        if self.table == "glyphs" and (self.features or width) > most:
            raise ValueError(f"glyphs have no more components than there are tokens, or pixels, at {where}: got "
                             f"{self.features or width} for {self.vocab} tokens; use features={most} or fewer")
        if self.table == "bits" and 2 ** (self.features or width) < self.vocab:
            raise ValueError(f"every token has bits of its own at {where}: got {self.features or width} for {self.vocab} "
                             f"tokens; use features={(self.vocab - 1).bit_length()} or more")

    def axes(self, width: int) -> dict[str, Param]:
        v, d, init = axis("vocab", self.vocab), axis("width", width), Init(f"table:{self.table}")
        if self.features is None:
            return {"table": param(v, d, init=init, statistic=True)}
        f = axis("features", self.features)
        return {"features": param(v, f, init=init, statistic=True), "projection.weight": param(d, f)}

    def build(self, width: int) -> nn.Module:
        if self.features is None:
            return FrozenTable(self.vocab, width)
        return ProjectedTable(self.vocab, self.features, width)

    def macs(self, width: int, length: int) -> float:
        """The projection; a look-up multiplies nothing."""
        return 0.0 if self.features is None else float(length * self.features * width)

    def decode_macs(self, width: int, length: int) -> float:
        return self.macs(width, 1)
