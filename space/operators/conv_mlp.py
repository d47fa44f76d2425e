"""A feed-forward layer whose hidden units see their neighbours.

Legend: B batch, H and W rows and columns of tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .depthwise_conv2d import GridFilters, square_taps
from .mlp import check_ratio, hidden_size
from .spatial import as_grid, require_odd

__all__ = ["ConvFeedForward", "ConvMLP"]


class ConvFeedForward(nn.Module):
    """`down(gelu(conv(up(x))))`; with `rectified`, `down(gelu(conv(relu(up(x)))))`."""

    def __init__(self, width: int, hidden: int, kernel: int, rectified: bool):
        super().__init__()
        self.rectified = rectified
        self.up = nn.Linear(width, hidden, bias=False)
        self.conv = GridFilters(hidden, kernel)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h_BHWF = self.up(as_grid(x))
        if self.rectified:
            h_BHWF = F.relu(h_BHWF)
        y_BHWD: Tensor = self.down(F.gelu(self.conv(h_BHWF)))
        return y_BHWD.view(x.shape)


@dataclass(frozen=True)
class ConvMLP(Operator):
    """The convolutional feed-forward layer of PVT v2 (Wang et al., 2021): zeros around the grid tell the places apart.

    ratio: hidden size over width, rounded up to a multiple of 8. kernel: side of the filter per hidden channel, odd; 3 in the
    paper. rectified: a ReLU before the filters, as the authors' code has beside linear attention. Neither matrices nor
    filters have biases. A sequence is a grid of one column.
    """

    ratio: Any = 4
    kernel: Any = 3
    rectified: Any = False
    kind: ClassVar[str] = "channel"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("PVT v2: Improved Baselines with Pyramid Vision Transformer", 2021,
                                      options=("S211",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        return {"up.weight": param(f, d), "conv.taps": square_taps(f, self.kernel), "down.weight": param(d, f)}

    def build(self, width: int) -> nn.Module:
        return ConvFeedForward(width, hidden_size(self.ratio, width), self.kernel, bool(self.rectified))

    def macs(self, width: int, length: Length) -> float:
        """Matrices and filters of all tokens."""
        return float(tokens_of(length) * hidden_size(self.ratio, width) * (2 * width + self.kernel**2))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
