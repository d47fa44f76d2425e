"""Attention over a sphere: keys count by the area they stand for.

Legend: B batch, H and W rows (latitudes) and columns (longitudes) of tokens, D width, T tokens (H * W), K heads, P head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .heads import projections_of
from .spatial import as_grid
from .windows import check_heads, head_size

__all__ = ["QuadratureAttention", "SphericalAttention", "latitudes"]

GRIDS = ("cells", "equiangular")


def latitudes(rows: int, grid: str) -> tuple[list[float], list[float]]:
    """Colatitude of every row, pole to pole, and the weight of its ring; weights sum to 2.

    cells: rows are bands of equal height in angle, weighed by their area. equiangular: rows are lines of latitude, the
    poles included, with Clenshaw-Curtis weights.
    """
    if grid == "cells" or rows == 1:
        edges = [math.pi * i / rows for i in range(rows + 1)]
        middles = [(a + b) / 2 for a, b in zip(edges[:-1], edges[1:], strict=True)]
        return middles, [math.cos(a) - math.cos(b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    last = rows - 1
    angles = [math.pi * i / last for i in range(rows)]
    return angles, [clenshaw_curtis(i, last) for i in range(rows)]


def clenshaw_curtis(i: int, last: int) -> float:
    """Weight of node i among 0, ..., last on the interval from -1 to 1."""
    total = sum((1 if 2 * j == last else 2) / (4 * j * j - 1) * math.cos(2 * math.pi * i * j / last)
                for j in range(1, last // 2 + 1))
    return (1 if i in (0, last) else 2) / last * (1 - total)


class QuadratureAttention(nn.Module):
    """`sum over j of w_j exp(q_i.k_j / sqrt(P)) v_j` over the sum of its weights, w_j the area of the key's cell.

    With a radius a token sees the keys at most that far away on the sphere, in radians.
    """

    def __init__(self, width: int, heads: int, head_dim: int, grid: str, radius: float | None):
        super().__init__()
        self.heads, self.head_dim, self.grid, self.radius = heads, head_dim, grid, radius
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        x_BTD = x_BHWD.flatten(1, 2)
        q, k, v = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
                   for project in (self.query, self.key, self.value))
        y_BKTP = F.scaled_dot_product_attention(q, k, v, attn_mask=self.measure(x_BHWD.shape[1], x_BHWD.shape[2], q))
        y_BTD: Tensor = self.out(y_BKTP.transpose(1, 2).flatten(2))
        return y_BTD.view(x.shape)

    def measure(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """log w of every key, [1, T], or minus infinity for keys that are too far, [T, T]."""
        angles, weights = latitudes(rows, self.grid)
        log_1T = torch.tensor(weights, dtype=torch.float64).log().repeat_interleave(columns)[None].to(like)
        if self.radius is None:
            return log_1T
        tilt_T = torch.tensor(angles, dtype=torch.float64).repeat_interleave(columns)
        turn_T = (2 * math.pi / columns * torch.arange(columns, dtype=torch.float64)).repeat(rows)
        place_T3 = torch.stack([tilt_T.sin() * turn_T.cos(), tilt_T.sin() * turn_T.sin(), tilt_T.cos()], -1)
        chord_TT = (place_T3[:, None] - place_T3).norm(dim=-1)
        far_TT = 2 * torch.asin((chord_TT / 2).clamp(max=1)) > self.radius + 1e-9
        return log_1T.expand(far_TT.shape).masked_fill(far_TT.to(like.device), -torch.inf)


@dataclass(frozen=True)
class SphericalAttention(Operator):
    """Attention on the Sphere (Bonev et al., 2025): a surface integral, by numerical quadrature, in place of a sum.

    The grid spans the sphere: rows are latitudes from pole to pole, columns longitudes all around. grid: "cells" for rows
    that are bands, as patches are, or "equiangular" for lines of latitude with both poles. radius: neighbourhood in radians
    along the sphere; None sees all. All pairs are computed and those beyond it masked. head_dim defaults to width / heads.
    """

    heads: Any = 4
    grid: Any = "cells"
    radius: Any = None
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Attention on the Sphere", 2025, systems=("S154",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        if self.grid not in GRIDS:
            raise ValueError(f"{unknown('grid', self.grid, GRIDS)} (at {where})")
        if self.radius is not None and not 0 < self.radius <= math.pi:
            raise ValueError(f"radius is an angle above 0 and at most pi at {where}: got {self.radius}; use None to see all")

    def axes(self, width: int) -> dict[str, Param]:
        k, size = axis("heads", self.heads), head_size(self, width)
        return projections_of(axis("width", width), k * axis("key_dim", size), k * axis("head_dim", size))

    def build(self, width: int) -> nn.Module:
        return QuadratureAttention(width, self.heads, head_size(self, width), self.grid, self.radius)

    def macs(self, width: int, length: Length) -> float:
        """Projections, plus scores and values of all pairs."""
        tokens = tokens_of(length)
        return float(tokens * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * tokens**2)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
