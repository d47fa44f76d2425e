"""Attention of every region of a grid to the few regions most like it.

Legend: B batch, H and W rows and columns of tokens, D width, K heads, P head_dim, E all heads, R and S regions down and
across, C regions (R * S), N places of a region, M chosen regions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .depthwise_conv2d import GridFilters, square_taps
from .gathered import gathered
from .spatial import as_grid, grid_of, require_odd
from .windows import check_heads, head_size, projections

__all__ = ["BiLevelRoutingAttention", "RoutedRegions"]


def region_side(size: int, regions: int) -> int:
    """Places of a region along a dimension that is cut into at most `regions`."""
    return -(-size // regions)


class RoutedRegions(nn.Module):
    """Regions are compared by the products of their mean queries and mean keys over all heads; the tokens of each attend to
    those of its `chosen` best ones. A depthwise convolution of the values is added before the last projection.

    The choice has no gradient. Places that fill up the last regions are in no mean and are not seen.
    """

    def __init__(self, width: int, heads: int, head_dim: int, regions: int, chosen: int, kernel: int | None):
        super().__init__()
        self.heads, self.regions, self.chosen = heads, regions, chosen
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.local = None if kernel is None else GridFilters(heads * head_dim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        _, height, width, _ = x_BHWD.shape
        sides = region_side(height, self.regions), region_side(width, self.regions)
        values_BHWE = self.value(x_BHWD)
        q, k, v = (self.cut(each, sides) for each in (self.query(x_BHWD), self.key(x_BHWD), values_BHWE))
        real_CN = self.cut(torch.ones_like(x_BHWD[:1, :, :, :1]), sides)[0, ..., 0]
        index_BCM = self.routes(q, k, real_CN)
        y_BHWE = self.grid(self.attended(q, k, v, index_BCM, real_CN > 0), sides, height, width)
        if self.local is not None:
            y_BHWE = y_BHWE + self.local(values_BHWE)
        y_BHWD: Tensor = self.out(y_BHWE)
        return y_BHWD.view(x.shape)

    def cut(self, x_BHWE: Tensor, sides: tuple[int, int]) -> Tensor:
        """Into regions, zeros filling up the last: [B, C, N, E]."""
        x_BHWE = F.pad(x_BHWE, (0, 0, 0, -x_BHWE.shape[2] % sides[1], 0, -x_BHWE.shape[1] % sides[0]))
        batch, height, width, size = x_BHWE.shape
        x_BRASAE = x_BHWE.view(batch, height // sides[0], sides[0], width // sides[1], sides[1], size)
        return x_BRASAE.transpose(2, 3).reshape(batch, -1, sides[0] * sides[1], size)

    def grid(self, y_BCNE: Tensor, sides: tuple[int, int], height: int, width: int) -> Tensor:
        """Undo `cut`."""
        down, across = -(-height // sides[0]), -(-width // sides[1])
        y_BRSAAE = y_BCNE.view(len(y_BCNE), down, across, *sides, y_BCNE.shape[-1])
        return y_BRSAAE.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def routes(self, q_BCNE: Tensor, k_BCNE: Tensor, real_CN: Tensor) -> Tensor:
        """The best regions of each, [B, C, M]."""
        count_C1 = real_CN.sum(1, keepdim=True)
        affinity_BCC = (q_BCNE.sum(2) / count_C1) @ (k_BCNE.sum(2) / count_C1).transpose(1, 2)
        return affinity_BCC.topk(min(self.chosen, affinity_BCC.shape[-1]), dim=-1).indices

    def attended(self, q_BCNE: Tensor, k_BCNE: Tensor, v_BCNE: Tensor, index_BCM: Tensor, real_CN: Tensor) -> Tensor:
        q_BKCNP, k_BKCNP, v_BKCNP = (torch.unflatten(each, -1, (self.heads, -1)).permute(0, 3, 1, 2, 4)
                                     for each in (q_BCNE, k_BCNE, v_BCNE))
        k_BKCLP, v_BKCLP = gathered(k_BKCNP, index_BCM[:, None]), gathered(v_BKCNP, index_BCM[:, None])
        seen_BCL = real_CN[index_BCM].flatten(2)
        logits_BKCNL = q_BKCNP @ k_BKCLP.transpose(3, 4) / math.sqrt(q_BKCNP.shape[-1])
        weights_BKCNL = logits_BKCNL.masked_fill(~seen_BCL[:, None, :, None], -torch.inf).softmax(-1)
        y_BCNE: Tensor = (weights_BKCNL @ v_BKCLP).permute(0, 2, 3, 1, 4).flatten(3)
        return y_BCNE


@dataclass(frozen=True)
class BiLevelRoutingAttention(Operator):
    """BiFormer: Vision Transformer with Bi-Level Routing Attention (Zhu et al., 2023).

    regions along each dimension; a grid of H x W has regions of ceil(H / regions) x ceil(W / regions) tokens. chosen: regions
    that a region attends to (the paper's top-k); with all of them this is attention over the whole grid. kernel: side of the
    convolution that is added to the values' average, odd, or None. head_dim defaults to width / heads. A sequence is a grid
    of one column.
    """

    heads: Any = 4
    regions: Any = 7
    chosen: Any = 4
    kernel: Any = 5
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    source: ClassVar[Source] = Source("BiFormer: Vision Transformer with Bi-Level Routing Attention", 2023,
                                      systems=("S384",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("regions", self.regions, where)
        require_whole("chosen", self.chosen, where, instead="use 4")
        if self.kernel is not None:
            require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        size = head_size(self, width)
        inner = axis("heads", self.heads) * axis("head_dim", size)
        local = {} if self.kernel is None else {"local.taps": square_taps(inner, self.kernel)}
        return projections(width, self.heads, size) | local

    def build(self, width: int) -> nn.Module:
        return RoutedRegions(width, self.heads, head_size(self, width), self.regions, self.chosen, self.kernel)

    def macs(self, width: int, length: Length) -> float:
        """Projections and convolution of the tokens, products of all regions, and all pairs of chosen ones, filled-up places
        included."""
        inner = self.heads * head_size(self, width)
        sides = [region_side(size, self.regions) for size in grid_of(length)]
        count = math.prod(-(-size // side) for size, side in zip(grid_of(length), sides, strict=True))
        pairs = count * min(self.chosen, count) * math.prod(sides) ** 2
        tokens = tokens_of(length)
        return float(tokens * (self.matrix_numel(width) + (self.kernel or 0) ** 2 * inner)
                     + inner * (count * count + 2 * pairs))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
