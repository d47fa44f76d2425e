"""Learned paths beside the identity shortcut.

Legend: B batch, T tokens, D width, P paths, C blocks along a side, K entries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole

__all__ = ["AugmentedShortcut", "CirculantPaths"]


class CirculantPaths(nn.Module):
    """`x + y + sum of gelu(x Theta_p)`; every Theta is made of circulant blocks, each given by its first column.

    A circulant block times a vector is a circular convolution, here as the product with the block written out, which for
    the sizes of transformers is faster than a transform; it holds D * D / K numbers instead of D * D.
    """

    def __init__(self, width: int, paths: int, block: int):
        super().__init__()
        self.block = block
        self.weight = nn.Parameter(torch.empty(paths, width // block, width // block, block))
        self.bias = nn.Parameter(torch.zeros(paths, width))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        total_BTD = x_BTD + y_BTD
        for theta_DD, bias_D in zip(self.matrices().unbind(0), self.bias.unbind(0), strict=True):
            total_BTD = total_BTD + F.gelu(F.linear(x_BTD, theta_DD, bias_D))
        return total_BTD

    def matrices(self) -> Tensor:
        """Theta of every path: entry (i, j) of a block is entry (i - j) mod K of its column."""
        step_K = torch.arange(self.block, device=self.weight.device)
        blocks_PCCKK = self.weight[..., (step_K[:, None] - step_K[None, :]) % self.block]
        return blocks_PCCKK.transpose(2, 3).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class AugmentedShortcut(Operator):
    """Augmented Shortcuts for Vision Transformers (Tang et al., 2021): `x + y + sum_i gelu(x Theta_i)`.

    paths: of them, 2 in the paper. block: size of a circulant block, a divisor of the width; None is a quarter of it, four
    blocks along a side, as in the authors' code, which has a bias per path and, unlike the formula of the paper, reads
    the stream after the norm; here the formula of the paper: the paths read the stream.
    """

    paths: Any = 2
    block: Any = None
    kind: ClassVar[str] = "join"
    fixed: ClassVar[dict[str, str]] = {"entry": "a circulant block is a circle", "width": "circulant blocks mix neighbours",
                                       "block_row": "circulant blocks mix neighbours",
                                       "block_column": "circulant blocks mix neighbours"}
    source: ClassVar[Source] = Source("Augmented Shortcuts for Vision Transformers", 2021, systems=("S157",))

    def entries(self, width: int) -> int:
        """Size of a block."""
        return int(self.block or max(width // 4, 1))

    def check(self, width: int, where: str) -> None:
        require_whole("paths", self.paths, where)
        if self.block is not None:
            require_whole("block", self.block, where)
        require_divisor("block", self.entries(width), "width", width, where)

    def axes(self, width: int) -> dict[str, Param]:
        size, p = self.entries(width), axis("paths", self.paths)
        start = Init("normal", gain=width ** -0.5)
        return {"weight": param(p, axis("block_row", width // size), axis("block_column", width // size),
                                axis("entry", size), init=start),
                "bias": param(p, axis("width", width), init="zeros")}

    def build(self, width: int) -> nn.Module:
        return CirculantPaths(width, self.paths, self.entries(width))

    def matrix_numel(self, width: int) -> int:
        """Entries of the matrices written out, which are multiplied."""
        return int(self.paths) * width * width
