"""What audio transformers do between patches and layers: positions by row and column, and patches left out while training.

Legend: B batch, H and W rows and columns of tokens (frequencies and times of a spectrogram), N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Source
from ..operators.checks import require_whole
from ..operators.spatial import as_grid, shaped_like
from .reduce import _Item

__all__ = ["FactoredPositions", "Patchout", "PatchesLeftOut", "RowAndColumn"]

PASST = Source("Efficient Training of Audio Transformers with Patchout", 2022, systems=("S212",))


class PatchesLeftOut(nn.Module):
    """While training, W X with W random rows of the identity, the same for the whole batch; else X."""

    def __init__(self, rows: int, columns: int, tokens: int, protected: int):
        super().__init__()
        self.rows, self.columns, self.tokens, self.protected = rows, columns, tokens, protected

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        y_BHWD = as_grid(x)
        if self.rows:
            y_BHWD = y_BHWD[:, self.left(y_BHWD.shape[1], self.rows, 0, x.device)]
        if self.columns:
            y_BHWD = y_BHWD[:, :, self.left(y_BHWD.shape[2], self.columns, 0, x.device)]
        if self.tokens:
            y_BND = y_BHWD.flatten(1, 2)
            y_BHWD = y_BND[:, self.left(y_BND.shape[1], self.tokens, self.protected, x.device), None]
        return shaped_like(x, y_BHWD)

    def left(self, count: int, out: int, protected: int, device: torch.device) -> Tensor:
        """The places of all but `out` of `count`, in order; at least one stays, and the protected first ones do."""
        first = min(protected, count)
        free = count - first
        chosen = torch.randperm(free, device=device)[:max(free - out, 0 if first else 1)].sort().values
        return torch.cat([torch.arange(first, device=device), first + chosen])


@dataclass(frozen=True)
class Patchout(_Item):
    """PaSST (Koutini et al., 2022): so many patches are left out of every training step, and none in use.

    rows, columns: whole ones, frequencies and times of a grid (structured); a sequence is a column, of which rows are tokens.
    tokens: single ones of what is left, after which a grid is one column (unstructured); the first `protected` stay. Random
    numbers are torch's own. Costs are those in use. Stands behind the positions and before `ClassToken(2)`, for a class and a
    distillation token:

        PatchEmbedding(patch=10, kernel=16, position=False, grid=True), FactoredPositions(rows, columns), Patchout(...)
    """

    rows: Any = 0
    columns: Any = 0
    tokens: Any = 0
    protected: Any = 0
    proof: ClassVar[str] = "tests/space/test_patchout.py"
    source: ClassVar[Source] = PASST

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.columns or self.tokens)

    def check(self, width: int, where: str) -> None:
        for name in ("rows", "columns", "tokens", "protected"):
            require_whole(name, getattr(self, name), where, low=0)

    def axes(self, width: int) -> dict[str, Param]:
        return {}

    def build(self, width: int) -> nn.Module:
        return PatchesLeftOut(self.rows, self.columns, self.tokens, self.protected)


class RowAndColumn(nn.Module):
    """The stream plus a learned vector per row and one per column, the first of them where the grid is smaller."""

    def __init__(self, rows: int, columns: int, width: int):
        super().__init__()
        self.row, self.column = nn.Parameter(torch.zeros(rows, width)), nn.Parameter(torch.zeros(columns, width))

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        height, width = x_BHWD.shape[1:3]
        if height > len(self.row) or width > len(self.column):
            raise ValueError(f"a grid has at most as many rows and columns as there are positions: got {height} x {width} "
                             f"for {len(self.row)} x {len(self.column)}")
        return shaped_like(x, x_BHWD + self.row[:height, None] + self.column[:width])


@dataclass(frozen=True)
class FactoredPositions(_Item):
    """The positions of PaSST (Koutini et al., 2022): a learned vector for the row, the frequency, plus one for the column,
    the time, so that columns may be fewer than in training.

    rows, columns: how many there are at most. A sequence is a grid of one column.
    """

    rows: Any
    columns: Any
    fixed: ClassVar[Mapping[str, str]] = {"rows": "an entry is a place", "columns": "an entry is a place"}
    proof: ClassVar[str] = "tests/space/test_patchout.py -k positions"
    source: ClassVar[Source] = Source(PASST.paper, PASST.year, options=("S212",))

    def check(self, width: int, where: str) -> None:
        require_whole("rows", self.rows, where)
        require_whole("columns", self.columns, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, init = axis("width", width), Init("normal", gain=0.02)
        return {"row": param(axis("rows", self.rows, "spread"), d, init=init),
                "column": param(axis("columns", self.columns, "spread"), d, init=init)}

    def build(self, width: int) -> nn.Module:
        return RowAndColumn(self.rows, self.columns, width)
