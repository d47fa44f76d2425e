"""A sequence mixer along several paths over a grid, and in groups.

Legend: B batch, H and W rows and columns of tokens, L = H * W tokens, D width, G groups, S tokens of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .mamba import Mamba
from .spatial import as_grid

__all__ = ["Scanned", "ScannedGrid"]

PATHS = ("rows", "columns", "rows_back", "columns_back", "nested")


def path_over(rows: int, columns: int, path: str, device: torch.device) -> Tensor:
    """Places in the order they are visited, [L]: by rows, by columns, either backwards, or quarter by quarter, nested."""
    place_HW = torch.arange(rows * columns, device=device).view(rows, columns)
    if path == "nested":
        return nested_order(rows, columns, device)
    order_L = place_HW.t().flatten() if path.startswith("columns") else place_HW.flatten()
    return order_L.flip(0) if path.endswith("back") else order_L


def nested_order(rows: int, columns: int, device: torch.device) -> Tensor:
    """The Z-order: both indices' bits in turn, so that every square of side 2^n stays together."""
    row_H1, column_W = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    key_HW = torch.zeros(rows, columns, dtype=torch.long, device=device)
    for bit in range(max(rows, columns).bit_length()):
        key_HW = key_HW + ((row_H1 >> bit & 1) << 2 * bit + 1) + ((column_W >> bit & 1) << 2 * bit)
    return key_HW.flatten().argsort()


class ScannedGrid(nn.Module):
    """The mean over paths of the mixer along each path, in groups of at most `group` tokens that see nothing of each other.

    Groups are as equal as they can be; the last one is filled up with zeros at its end.
    """

    def __init__(self, mixers: list[nn.Module], paths: tuple[str, ...], group: int | None):
        super().__init__()
        self.paths, self.group = list(paths), group
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        rows, columns = x_BHWD.shape[1:3]
        x_BLD, total = x_BHWD.flatten(1, 2), torch.zeros_like(x_BHWD.flatten(1, 2))
        for number, path in enumerate(self.paths):
            order_L = path_over(rows, columns, path, x.device)
            mixer = self.mixers[number % len(self.mixers)]
            total = total + self.grouped(mixer, x_BLD[:, order_L])[:, order_L.argsort()]
        return (total / len(self.paths)).view(x.shape)

    def grouped(self, mixer: nn.Module, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        if self.group is None or self.group >= length:
            return mixer(x_BLD)                                                      # type: ignore[no-any-return]
        groups = -(-length // self.group)
        size = -(-length // groups)
        x_NSD = F.pad(x_BLD, (0, 0, 0, groups * size - length)).reshape(-1, size, width)
        return mixer(x_NSD).reshape(batch, groups * size, width)[:, :length]         # type: ignore[no-any-return]


@dataclass(frozen=True)
class Scanned(Operator):
    """Any sequence mixer on grids: Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured State Space
    Models (Sepehri, Fabian and Soltanolkotabi, 2024) turns the grid into sequences along several paths; LION: Linear Group
    RNN for 3D Object Detection in Point Clouds (Liu et al., 2024) runs a linear recurrence in groups.

    mixer: an operator that takes sequences; its numbers may be choices. paths: of "rows", "columns", both with "_back", and
    "nested", which keeps squares of side 2^n together, as hierarchical orders of graphs' nodes do (Best of Both Worlds:
    Advantages of Hybrid Graph Sequence Models, Behrouz et al., 2024). group: most tokens of a group; None for one group.
    shared: one mixer for all paths, or one each. Outputs are averaged. A sequence is a grid of one column.

    At several scales it stands in `UShape`, as in Serpent; LION's local convolution is `DepthwiseConv2d` before it.
    """

    mixer: Any = field(default_factory=Mamba)
    paths: Any = ("rows", "columns", "rows_back", "columns_back")
    group: Any = None
    shared: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured State "
                                      "Space Models", 2024, options=("S039", "S249", "S357"))

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        return bool(self.mixer.keeps_zero)

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return self.mixer.fixed                                                       # type: ignore[no-any-return]

    @property
    def couples(self) -> frozenset[str]:                                              # type: ignore[override]
        return self.mixer.couples                                                     # type: ignore[no-any-return]

    @property
    def batched(self) -> frozenset[str]:                                              # type: ignore[override]
        return self.mixer.batched                                                     # type: ignore[no-any-return]

    def check(self, width: int, where: str) -> None:
        if not isinstance(self.mixer, Operator) or self.mixer.kind != "mixer" or self.mixer.spatial:
            raise ValueError(f"a scanned mixer is an operator that takes sequences at {where}: got {self.mixer!r}; use "
                             "Mamba(), GatedDeltaNet() or another mixer")
        self.mixer.check(width, f"{where}.mixer")
        if not isinstance(self.paths, tuple) or not self.paths:
            raise ValueError(f"paths is a tuple of {', '.join(PATHS)} at {where}: got {self.paths!r}")
        for path in self.paths:
            if path not in PATHS:
                raise ValueError(f"{unknown('path', path, PATHS)} (at {where})")
        if self.group is not None:
            require_whole("group", self.group, where, instead="use 64, or None for one group")

    def copies(self) -> int:
        """How many mixers with weights of their own."""
        return 1 if self.shared else len(self.paths)

    def axes(self, width: int) -> dict[str, Param]:
        return {f"mixers.{copy}.{name}": part for copy in range(self.copies())
                for name, part in self.mixer.axes(width).items()}

    def build(self, width: int) -> nn.Module:
        return ScannedGrid([self.mixer.build(width) for _ in range(self.copies())], self.paths, self.group)

    def macs(self, width: int, length: Length) -> float:
        """The mixer on every group of every path, what fills up the last group included."""
        tokens = tokens_of(length)
        groups = 1 if self.group is None else max(-(-tokens // self.group), 1)
        return float(len(self.paths) * groups * self.mixer.macs(width, -(-tokens // groups)))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
