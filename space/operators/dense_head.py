"""Scores of classes, or values, at every place of a map.

Legend: B batch, H and W rows and columns, D width, U hidden, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .spatial import as_grid, shaped_like

__all__ = ["DenseHead", "PlaceScores"]


class PlaceScores(nn.Module):
    """`scores(relu(enlarged(conv(x))))`, a convolution of 3 x 3; without it the scores of every place alone."""

    def __init__(self, width: int, classes: int, hidden: int | None, up: int):
        super().__init__()
        self.up = up
        self.conv = nn.Parameter(torch.empty(hidden, width, 3, 3)) if hidden else None
        self.hidden_scores = nn.Linear(hidden, classes) if hidden else None
        self.scores = None if hidden else nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        if self.conv is not None:
            x_BDHW = F.conv2d(x_BDHW, self.conv, padding=1)
        if self.up > 1:
            x_BDHW = F.interpolate(x_BDHW, scale_factor=float(self.up), mode="bilinear", align_corners=True)
        x_BHWD = x_BDHW.permute(0, 2, 3, 1)
        if self.hidden_scores is not None:
            return shaped_like(x, self.hidden_scores(F.relu(x_BHWD)))
        return shaped_like(x, self.scores(x_BHWD))                                    # type: ignore[misc]


@dataclass(frozen=True)
class DenseHead(Operator):
    """The head of DPT (Ranftl et al., 2021): scores at every place of a grid, (B, up * H, up * W, classes).

    classes: scores per place, 1 for a depth. hidden: channels of a convolution of 3 x 3 before; None for none. up: how often
    a place is repeated along rows and columns, bilinearly; 1 for the places of the grid. Needs a grid where it enlarges.
    """

    classes: Any
    hidden: Any = None
    up: Any = 1
    kind: ClassVar[str] = "head"
    fixed: ClassVar[Mapping[str, str]] = {"classes": "a row is a class"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Vision Transformers for Dense Prediction", 2021, options=("S174",))

    def check(self, width: int, where: str) -> None:
        require_whole("classes", self.classes, where, instead="use 1 for one value per place")
        require_whole("up", self.up, where)
        if self.hidden is not None:
            require_whole("hidden", self.hidden, where, instead="use None for scores of every place alone")

    def axes(self, width: int) -> dict[str, Param]:
        d, k = axis("width", width), axis("classes", self.classes)
        if self.hidden is None:
            return {"scores.weight": param(k, d), "scores.bias": param(k, init="zeros")}
        f = axis("hidden", self.hidden)
        conv = param(f, d, axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre"))
        return {"conv": conv, "hidden_scores.weight": param(k, f), "hidden_scores.bias": param(k, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return PlaceScores(width, self.classes, self.hidden, self.up)

    def macs(self, width: int, length: Length) -> float:
        """The convolution of all places, and the scores of all enlarged ones."""
        conv = 9 * width * self.hidden if self.hidden else 0
        return float(tokens_of(length) * (conv + self.up**2 * (self.hidden or width) * self.classes))
