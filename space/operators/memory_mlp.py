"""A feed-forward layer with hidden units fetched from a hierarchy of memories.

Legend: B batch, T tokens, D width, F hidden, M hidden units of a block.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...registry import unknown
from ..axes import Dim, Param, axis, param
from ..operator import Operator, Source
from .checks import is_whole, require_whole
from .mlp import ACTIVATIONS, FeedForward, check_ratio, hidden_size

__all__ = ["MemoryMLP", "RememberingFeedForward", "memory_paths"]


def memory_paths(levels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every path from the root of a hierarchy to a leaf: at level i one of `levels[i]` children."""
    return list(itertools.product(*map(range, levels)))


class RememberingFeedForward(nn.Module):
    """`feed_forward(x) + sum over fetched blocks of down(activation(up(x)))`: what their units add to the hidden layer."""

    def __init__(self, width: int, hidden: int, blocks: tuple[int, ...], activation: str):
        super().__init__()
        self.feed_forward = FeedForward(width, hidden, activation)
        self.fetched = nn.ModuleList(FeedForward(width, block, activation) for block in blocks)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.feed_forward(x_BTD)
        for block in self.fetched:
            y_BTD = y_BTD + block(x_BTD)
        return y_BTD


@dataclass(frozen=True)
class MemoryMLP(Operator):
    """Hierarchical parametric memories (Pouransari et al., 2025): `down act(up x) + sum over levels of M_down act(M_up x)`.

    The knowledge of a corpus that is clustered into a tree lies in blocks of hidden units, one for every node. A network
    holds those on one path, from the node at level 0 to a leaf, beside the units that all share.

    ratio, activation: of what all share, as of `MLP`. levels: children of a node at each level; () for no memories, which is
    `MLP`. block: hidden units of a block, one number or one per level. path: the child that is taken at each level.

    The bank is the supernet of a space whose `path` is a `tied` choice among `memory_paths(levels)`, so that all layers fetch
    the same nodes: a subnet of a path reads and trains the blocks of that path and nothing else of the bank, an extracted or
    exported network holds no others, and parameters and memory are counted so. Clustering texts, and choosing the path of a
    text, are left to whoever has them.
    """

    ratio: Any = 4
    activation: Any = "gelu"
    levels: Any = (4, 4)
    block: Any = 64
    path: Any = (0, 0)
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Pretraining with hierarchical memories: separating long-tail and common knowledge",
                                      2025, options=("S025",))

    def blocks(self) -> tuple[int, ...]:
        """Hidden units of a block at each level."""
        return self.block if isinstance(self.block, tuple) else (self.block,) * len(self.levels)

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")
        if not isinstance(self.levels, tuple) or not all(map(is_whole, self.levels)):
            raise ValueError(f"levels are numbers of children at {where}: got {self.levels!r}; use (4, 4), or () for none")
        for size in self.blocks():
            require_whole("block", size, where)
        if len(self.blocks()) != len(self.levels):
            raise ValueError(f"block is one number, or one for each level, at {where}: got {self.block!r} for "
                             f"{len(self.levels)} levels")
        if self.path not in memory_paths(self.levels):
            raise ValueError(f"path names a child at each level at {where}: got {self.path!r}; use one of "
                             f"memory_paths({self.levels!r}), of which there are {math.prod(self.levels)}")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        declared = {"feed_forward.up.weight": param(f, d), "feed_forward.down.weight": param(d, f)}
        node: Dim = Dim(((),))
        for level, (child, size) in enumerate(zip(self.path, self.blocks(), strict=True)):
            node = node * axis(f"child_{level}", 1, (child,))
            units = node * axis(f"block_{level}", size)
            declared |= {f"fetched.{level}.up.weight": param(units, d), f"fetched.{level}.down.weight": param(d, units)}
        return declared

    def build(self, width: int) -> nn.Module:
        return RememberingFeedForward(width, hidden_size(self.ratio, width), self.blocks(), self.activation)
