"""A feed-forward layer with a filter of every hidden channel inside.

Legend: B batch, H and W rows and columns of tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .mlp import check_ratio, hidden_size
from .spatial import as_grid, require_odd
from .squeeze_excite import ChannelWeights, squeeze_axes

__all__ = ["DepthwiseMLP", "FilteredFeedForward"]


class FilteredFeedForward(nn.Module):
    """`weigh(norm(down(h + gelu(norm(conv(h))))))` with `h = gelu(norm(up(x)))` and a norm of its own at each place."""

    def __init__(self, width: int, hidden: int, kernel: int, squeezed: int, folded: bool = False):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.up_norm: Any = ChannelShift(hidden) if folded else BatchNormalisation(hidden)
        self.conv = GridFilters(hidden, kernel)
        self.conv_norm: Any = ChannelShift(hidden) if folded else BatchNormalisation(hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.down_norm: Any = ChannelShift(width) if folded else BatchNormalisation(width)
        self.weigh = ChannelWeights(width, squeezed, "gelu", "sigmoid") if squeezed else None

    def forward(self, x: Tensor) -> Tensor:
        h_BHWF = F.gelu(self.up_norm(self.up(as_grid(x))))
        h_BHWF = h_BHWF + F.gelu(self.conv_norm(self.conv(h_BHWF)))
        y_BHWD: Tensor = self.down_norm(self.down(h_BHWF))
        return (y_BHWD if self.weigh is None else self.weigh(y_BHWD)).view(x.shape)


@dataclass(frozen=True)
class DepthwiseMLP(Operator):
    """The dynamic aggregation feed-forward of DHVT (Lu et al., 2022), for grids, which have no class token.

    ratio: hidden size over width. kernel: side of the filters, odd. reduction: the width over that between the matrices that
    weigh channels by what the grid holds; None for no weighing. In the paper those weights multiply the class token, here the
    tokens; its gate has no sigmoid there. folded: whether batch norms are in the weights before them, all but their shift.
    """

    ratio: Any = 4
    kernel: Any = 3
    reduction: Any = 4
    folded: Any = False
    kind: ClassVar[str] = "channel"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on "
                                      "Small Datasets", 2022, options=("S247",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        require_odd("kernel", self.kernel, where)
        if self.reduction is not None:
            require_whole("reduction", self.reduction, where, instead="use None for channels that are not weighed")

    def _squeezed(self, width: int) -> int:
        return max(width // self.reduction, 1) if self.reduction else 0

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        weigh = squeeze_axes("weigh.", d, self._squeezed(width)) if self.reduction else {}
        return {"up.weight": param(f, d), "conv.taps": square_taps(f, self.kernel), "down.weight": param(d, f), **weigh,
                **batch_norm_axes("up_norm", f, self.folded), **batch_norm_axes("conv_norm", f, self.folded),
                **batch_norm_axes("down_norm", d, self.folded)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"up_norm": "up.weight", "conv_norm": "conv.taps", "down_norm": "down.weight"}

    def build(self, width: int) -> nn.Module:
        return FilteredFeedForward(width, hidden_size(self.ratio, width), self.kernel, self._squeezed(width),
                                   bool(self.folded))

    def macs(self, width: int, length: Length) -> float:
        """Matrices and filters of all tokens, and the two small matrices once."""
        per_token = hidden_size(self.ratio, width) * (2 * width + self.kernel**2)
        return float(tokens_of(length) * per_token + 2 * width * self._squeezed(width))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
