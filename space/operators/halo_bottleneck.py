"""A residual bottleneck whose middle is attention of blocks with a halo.

Legend: B batch, H and W rows and columns of tokens, D width, I inner width, E all heads of values, O width out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Dim, Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNorm, BatchNormalisation
from .checks import require_whole
from .halo_attention import HaloValues, check_halo, halo_positions, halo_products
from .spatial import as_grid, grid_of, shaped_like
from .windows import block_side

__all__ = ["AttentionBottleneck", "HaloBottleneck", "HaloSizes", "bottleneck_axes", "bottleneck_macs",
           "check_bottleneck"]


@dataclass(frozen=True)
class HaloSizes:
    """What a bottleneck is made of: heads, head_dim of queries and keys and of values, block, halo, position, stride."""

    heads: int
    head_dim: int
    value_dim: int
    block: int
    halo: int
    position: str | None = "relative"
    stride: int = 1


class AttentionBottleneck(nn.Module):
    """`norm(out(relu(norm(attention(relu(norm(reduce(x))))))))`, with a norm of its own at each place."""

    def __init__(self, width: int, out_width: int, heads: int, head_dim: int, value_dim: int, block: int, halo: int,
                 position: str | None, stride: int = 1):
        super().__init__()
        self.reduce = nn.Linear(width, heads * head_dim, bias=False)
        self.reduce_norm = BatchNormalisation(heads * head_dim)
        self.attention = HaloValues(heads * head_dim, heads, head_dim, value_dim, block, halo, position, stride)
        self.value_norm = BatchNormalisation(heads * value_dim)
        self.out = nn.Linear(heads * value_dim, out_width, bias=False)
        self.out_norm = BatchNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWI = F.relu(self.reduce_norm(self.reduce(as_grid(x))))
        y_BHWE = F.relu(self.value_norm(self.attention(x_BHWI)))
        return shaped_like(x, self.out_norm(self.out(y_BHWE)))


def bottleneck_axes(width: int, out: Axis, sizes: HaloSizes) -> dict[str, Param]:
    """The parameters of `AttentionBottleneck` between `width` and `out`."""
    heads = axis("heads", sizes.heads)
    inner, values = axis("inner", sizes.heads * sizes.head_dim), heads * axis("value_dim", sizes.value_dim)
    keys = heads * axis("head_dim", sizes.head_dim)

    def norm(place: str, where: Axis | Dim) -> dict[str, Param]:
        return {f"{place}.{name}": renamed(part, "width", where) for name, part in BatchNorm().axes(1).items()}

    positions = halo_positions(sizes.position, sizes.block, sizes.halo, sizes.heads, sizes.head_dim)
    return {"reduce.weight": param(inner, axis("width", width)), "attention.query.weight": param(keys, inner),
            "attention.key.weight": param(keys, inner), "attention.value.weight": param(values, inner),
            **{f"attention.{name}": part for name, part in positions.items()}, "out.weight": param(out, values),
            **norm("reduce_norm", inner), **norm("value_norm", values), **norm("out_norm", out)}


def bottleneck_macs(width: int, out: int, sizes: HaloSizes, length: Length) -> float:
    """Projections (queries of filled-up places included) and the products of all blocks."""
    inner, values = sizes.heads * sizes.head_dim, sizes.heads * sizes.value_dim
    sides = [(size, block_side(sizes.block, sizes.halo, size)[0]) for size in grid_of(length)]
    queries = math.prod(-(-size // side) * -(-side // sizes.stride) for size, side in sides)
    left = math.prod(-(-size // sizes.stride) for size, _ in sides)
    projected = tokens_of(length) * inner * (width + inner + values) + queries * inner * inner + left * values * out
    return projected + halo_products(length, sizes.block, sizes.halo, inner, values, sizes.position, sizes.stride)


@dataclass(frozen=True)
class HaloBottleneck(Operator):
    """The block of HaloNet (Vaswani et al., 2021): `Block(mixer=HaloBottleneck(), norm=NoNorm())`, without the activation
    that follows the residual sum there.

    heads, head_dim: of queries and keys; heads * head_dim is the inner width. values: size of a value over that of a key
    (r_v). block, halo, position: as of `HaloAttention`. The width of the stream over the inner width is r_b.
    """

    heads: Any = 4
    head_dim: Any = 16
    values: Any = 1.0
    block: Any = 8
    halo: Any = 3
    position: Any = "relative"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Scaling Local Self-Attention for Parameter Efficient Visual Backbones", 2021,
                                      options=("S390",))

    def check(self, width: int, where: str) -> None:
        check_bottleneck(self, where)

    def sizes(self) -> HaloSizes:
        """With the size of a value worked out."""
        return HaloSizes(self.heads, self.head_dim, round(self.values * self.head_dim), self.block, self.halo, self.position)

    def axes(self, width: int) -> dict[str, Param]:
        return bottleneck_axes(width, axis("width", width), self.sizes())

    def build(self, width: int) -> nn.Module:
        sizes = self.sizes()
        return AttentionBottleneck(width, width, sizes.heads, sizes.head_dim, sizes.value_dim, sizes.block, sizes.halo,
                                   sizes.position)

    def macs(self, width: int, length: Length) -> float:
        return bottleneck_macs(width, width, self.sizes(), length)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)


def check_bottleneck(config: Any, where: str) -> None:
    """Raise ValueError unless the attention inside can be built."""
    require_whole("heads", config.heads, where)
    require_whole("head_dim", config.head_dim, where)
    check_halo(config, where)
    if isinstance(config.values, bool) or not isinstance(config.values, (int, float)) or not config.values > 0 \
            or round(config.values * config.head_dim) < 1:
        raise ValueError(f"values must be a positive number at {where}: got {config.values!r}; it is the size of a value "
                         "over that of a key, such as 1")
