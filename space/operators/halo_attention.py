"""Attention of blocks of a grid to themselves and a margin around them.

Legend: B batch, H and W rows and columns of tokens, D width, R and C blocks down and across, A places of an enlarged block
in one dimension, M keys of a block (A * A), U and N queries of a block in one dimension and in all, K heads, P head_dim of
queries and keys, V of values, E all heads of values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .spatial import as_grid, grid_of
from .windows import (
    attend_windows,
    block_side,
    blocks,
    check_heads,
    gather_windows,
    grid_of_windows,
    head_size,
    projections,
    seen_in_windows,
    split_heads,
)

__all__ = ["BlocksWithHalo", "HaloAttention", "HaloValues", "check_halo", "halo_positions", "halo_products"]

POSITIONS = ("relative", "bias")


class HaloValues(nn.Module):
    """Values that every token collects from its block of `block` x `block` tokens and `halo` more on each side.

    What lies outside the grid is not seen. With a stride, queries are every `stride`-th token of a block alone and a smaller
    grid comes out. position: "relative", products of queries with a vector per row and per column of offset, for all heads;
    "bias", a number per offset and head; None.
    """

    def __init__(self, width: int, heads: int, head_dim: int, value_dim: int, block: int, halo: int, position: str | None,
                 stride: int = 1):
        super().__init__()
        self.heads, self.block, self.halo, self.position, self.stride = heads, block, halo, position, stride
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * value_dim, bias=False)
        offsets = 2 * (block + halo) - 1
        if position == "relative":
            self.rows = nn.Parameter(torch.empty(offsets, head_dim))
            self.columns = nn.Parameter(torch.empty(offsets, head_dim))
        elif position == "bias":
            self.bias = nn.Parameter(torch.empty(offsets, offsets, heads))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        _, height, width, _ = x_BHWD.shape
        sides = block_side(self.block, self.halo, height), block_side(self.block, self.halo, width)
        (rows_RA, columns_CA), (down_RU, across_CU) = (
            [blocks(size, block, around, x_BHWD.device) for size, (block, around) in zip((height, width), pairs, strict=True)]
            for pairs in (sides, [(block, 0) for block, _ in sides]))
        down_RU, across_CU = down_RU[:, ::self.stride], across_CU[:, ::self.stride]
        q = split_heads(self.query(gather_windows(x_BHWD, down_RU, across_CU)), self.heads)
        q = q / math.sqrt(q.shape[-1])
        k, v = (split_heads(gather_windows(project(x_BHWD), rows_RA, columns_CA), self.heads)
                for project in (self.key, self.value))
        offsets = down_RU[0][:, None] - rows_RA[0], across_CU[0][:, None] - columns_CA[0]
        logits = self.with_positions(q @ k.transpose(-1, -2), q, *offsets)
        y_BRCNE = attend_windows(logits, v, self.seen(height, width, rows_RA, columns_CA))
        queries = down_RU.shape[1], across_CU.shape[1]
        return grid_of_windows(y_BRCNE, queries, -(-height // self.stride), -(-width // self.stride))

    def seen(self, height: int, width: int, rows_RA: Tensor, columns_CA: Tensor) -> Tensor | None:
        """Which keys are on the grid; None for all, where neither a halo nor a block reaches over its edge."""
        if rows_RA.numel() == height and columns_CA.numel() == width:
            return None
        return seen_in_windows(height, width, rows_RA, columns_CA)

    def with_positions(self, logits: Tensor, q_BRCKNP: Tensor, down_UA: Tensor, across_UA: Tensor) -> Tensor:
        """The logits [B, R, C, K, N, M] with what the offset of each query and key adds."""
        centre = self.block + self.halo - 1
        if self.position == "bias":
            bias_UUAAK = self.bias[(down_UA + centre)[:, None, :, None], (across_UA + centre)[None, :, None, :]]
            return logits + bias_UUAAK.flatten(2, 3).flatten(0, 1).permute(2, 0, 1)
        if self.position is None:
            return logits
        q = torch.unflatten(q_BRCKNP, -2, (down_UA.shape[0], across_UA.shape[0]))
        down = torch.einsum("...uwp,uap->...uwa", q, self.rows[down_UA + centre])
        across = torch.einsum("...uwp,wap->...uwa", q, self.columns[across_UA + centre])
        return logits + (down[..., None] + across[..., None, :]).flatten(-2).flatten(-3, -2)


class BlocksWithHalo(nn.Module):
    """`HaloValues`, projected back to the width."""

    def __init__(self, width: int, heads: int, head_dim: int, block: int, halo: int, position: str | None):
        super().__init__()
        self.attention = HaloValues(width, heads, head_dim, head_dim, block, halo, position)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y_BHWD: Tensor = self.out(self.attention(as_grid(x)))
        return y_BHWD.view(x.shape)


def halo_positions(position: str | None, block: int, halo: int, heads: int, head_dim: int) -> dict[str, Param]:
    """The tables of offsets; those of a smaller block or halo are the middle of larger ones."""
    rows, columns = (axis(f"offset_{way}", 2 * (block + halo) - 1, "centre") for way in ("rows", "columns"))
    if position == "relative":
        vector, start = axis("head_dim", head_dim), Init("normal", gain=head_dim**-0.5)
        return {"rows": param(rows, vector, init=start), "columns": param(columns, vector, init=start)}
    return {"bias": param(rows, columns, axis("heads", heads), init=Init("normal", gain=0.02))} if position else {}


def halo_products(length: Length, block: int, halo: int, key: int, value: int, position: str | None,
                  stride: int = 1) -> float:
    """Multiply-adds of scores, positions and values of all blocks, filled-up places included. key, value: of all heads."""
    sides = [block_side(block, halo, size) for size in grid_of(length)]
    queries = math.prod(-(-size // side) * -(-side // stride) for size, (side, _) in zip(grid_of(length), sides, strict=True))
    reach = [side + 2 * around for side, around in sides]
    relative = key * sum(reach) if position == "relative" else 0
    return float(queries * ((key + value) * math.prod(reach) + relative))


@dataclass(frozen=True)
class HaloAttention(Operator):
    """HaloNet (Vaswani et al., 2021): blocks of queries share the keys of the block and of a halo around it.

    block: side of the blocks. halo: how far they see beyond their edge; 0 is attention inside windows. position: "relative"
    (a vector per row and per column of offset, as in Attention Augmented Convolutional Networks, Bello et al., 2019, scaled
    with the queries), "bias" (a number per offset and head, as in Swin; with halo = overlap * block / 2 the overlapping
    cross-attention of HAT, Chen et al., 2023) or None. head_dim defaults to width / heads. A sequence is a grid of one
    column. What lies outside the grid is not seen (in the authors' code of HAT it is seen as zeros). Linear in tokens.
    """

    heads: Any = 4
    block: Any = 8
    halo: Any = 3
    position: Any = "relative"
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Scaling Local Self-Attention for Parameter Efficient Visual Backbones", 2021,
                                      systems=("S390",), options=("S256",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        check_halo(self, where)

    def axes(self, width: int) -> dict[str, Param]:
        head_dim = head_size(self, width)
        inside = {name: part for name, part in projections(width, self.heads, head_dim).items() if name != "out.weight"}
        inside |= halo_positions(self.position, self.block, self.halo, self.heads, head_dim)
        return {**{f"attention.{name}": part for name, part in inside.items()},
                "out.weight": projections(width, self.heads, head_dim)["out.weight"]}

    def build(self, width: int) -> nn.Module:
        return BlocksWithHalo(width, self.heads, head_size(self, width), self.block, self.halo, self.position)

    def macs(self, width: int, length: Length) -> float:
        """Projections (queries of filled-up places included) and the products of all blocks."""
        inner = self.heads * head_size(self, width)
        filled = math.prod(-(-size // side) * side for size in grid_of(length)
                           for side in [block_side(self.block, self.halo, size)[0]])
        projected = width * inner * (3 * tokens_of(length) + filled)
        return float(projected) + halo_products(length, self.block, self.halo, inner, inner, self.position)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)


def check_halo(config: Any, where: str) -> None:
    """Raise ValueError unless block, halo and position can be built."""
    require_whole("block", config.block, where)
    require_whole("halo", config.halo, where, low=0, instead="use 0 for windows that do not overlap")
    if config.position is not None and config.position not in POSITIONS:
        raise ValueError(f"{unknown('position', config.position, POSITIONS)} (at {where}); None for no positions")
