"""Layers of one resolution, and a map of finer resolution made of what several of them gave.

Legend: B batch, H and W rows and columns of tokens, D width, E width of the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Param, axis, param
from ..graph import SKIP
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from ..operators.spatial import as_grid, grid_of
from .base import Macro, Numbers, Part, Visit, kept
from .looped import stream_parts

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DensePrediction", "Fusion", "Reassembled", "ReassembledLayers", "ResidualConvolutions"]

FACTORS = (4, 2, 1, -2)                       # of the resolution of the tokens; -2 halves it


class Reassembled(nn.Module):
    """Tokens projected to the width of the map, and enlarged `factor` times by a transposed convolution, or halved."""

    def __init__(self, width: int, out_width: int, factor: int):
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(width, out_width, bias=False)
        side = 3 if factor < 0 else factor
        self.weight = nn.Parameter(torch.empty(out_width, out_width, side, side)) if factor != 1 else None

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y_BEHW = self.project(x_BHWD).permute(0, 3, 1, 2)
        if self.weight is None:
            return y_BEHW                                                            # type: ignore[no-any-return]
        if self.factor < 0:
            return F.conv2d(y_BEHW, self.weight, stride=2, padding=1)
        return F.conv_transpose2d(y_BEHW, self.weight, stride=self.factor)


class ResidualConvolutions(nn.Module):
    """`x + second(relu(first(relu(x))))`, two convolutions of 3 x 3."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.empty(width, width, 3, 3)) for _ in range(2))

    def forward(self, x_BEHW: Tensor) -> Tensor:
        return x_BEHW + F.conv2d(F.relu(F.conv2d(F.relu(x_BEHW), self.first, padding=1)), self.second, padding=1)


class Fusion(nn.Module):
    """`mix(enlarged(body(map + side(tokens))))`; the coarsest map is made of tokens alone."""

    def __init__(self, width: int, joins: bool):
        super().__init__()
        self.side = ResidualConvolutions(width) if joins else None
        self.body = ResidualConvolutions(width)
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, tokens_BEHW: Tensor, map_BEHW: Tensor | None, size: tuple[int, int]) -> Tensor:
        if self.side is not None and map_BEHW is not None:
            tokens_BEHW = map_BEHW + self.side(tokens_BEHW)
        larger_BEHW = F.interpolate(self.body(tokens_BEHW), size=size, mode="bilinear", align_corners=True)
        return self.mix(larger_BEHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)         # type: ignore[no-any-return]


class ReassembledLayers(nn.Module):
    """The layers, and the fused map of what is read after each share of them; only the map goes on."""

    def __init__(self, layers: list[nn.Module], width: int, out_width: int, reads: tuple[int, ...]):
        super().__init__()
        self.reads = reads
        self.layers = nn.ModuleList(layers)
        self.reassemble = nn.ModuleList([Reassembled(width, out_width, FACTORS[i]) for i in range(len(reads))])
        self.fuse = nn.ModuleList([Fusion(out_width, i + 1 < len(reads)) for i in range(len(reads))])

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            x = layer(x)
            maps += [part(as_grid(x)) for read, part in zip(self.reads, self.reassemble, strict=True) if read == i]
        map_BEHW = None
        for i in reversed(range(len(maps))):
            rows, columns = maps[max(i - 1, 0)].shape[2:]
            map_BEHW = self.fuse[i](maps[i], map_BEHW, (rows, columns) if i else (2 * rows, 2 * columns))
        return map_BEHW.permute(0, 2, 3, 1)                                          # type: ignore[union-attr, no-any-return]


@dataclass(frozen=True)
class DensePrediction(Macro):
    """DPT (Ranftl et al., 2021): turns layers of one resolution into a dense predictor. What they give after every quarter is
    reassembled to maps of 4, 2, 1 and 1 / 2 times their resolution, and a convolutional decoder fuses these from the coarsest
    on, a map of 8 times the resolution of the tokens going on to a `DenseHead`.

    layers: blocks and macros that keep width and resolution, of a grid, at least as many as there are reads. width: of the
    map; 256 in the paper. reads: how many, at most 4. Tokens of a class, which the paper adds or projects to the others
    ("readout"), are not in a grid, and convolutions have no biases.
    """

    layers: Any
    width: Any = 256
    reads: Any = 4
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_dense_prediction.py"
    source: ClassVar[Source] = Source("Vision Transformers for Dense Prediction", 2021, options=("S174",))

    def check(self, width: int, where: str) -> None:
        require_whole("width", self.width, where)
        require_whole("reads", self.reads, where)
        layers = kept(self.layers)
        if self.reads > min(len(FACTORS), len(layers)):
            raise ValueError(f"reads is at most {len(FACTORS)}, and at most the number of layers, at {where}: got "
                             f"{self.reads} and {len(layers)} layers")
        for entry in layers:
            if entry.item is not None and entry.item.out(width, (16, 16)) != (width, (16, 16)):
                raise ValueError(f"layers keep width and resolution at {where}: {type(entry.item).__name__} does not; the "
                                 "decoder changes them")

    def after(self) -> tuple[int, ...]:
        """How many layers are before each read."""
        count = len(kept(self.layers))
        return tuple((i + 1) * count // self.reads for i in range(self.reads))

    def axes(self, width: int) -> dict[str, Param]:
        d, e, found = axis("width", width), axis("stage_width", self.width), dict[str, Param]()
        for i, factor in enumerate(FACTORS[:self.reads]):
            found[f"reassemble.{i}.project.weight"] = param(e, d)
            if factor != 1:
                found[f"reassemble.{i}.weight"] = _square(e, 3 if factor < 0 else factor)
            for unit in ("side", "body") if i + 1 < self.reads else ("body",):
                found |= {f"fuse.{i}.{unit}.{name}": _square(e, 3) for name in ("first", "second")}
            found[f"fuse.{i}.mix.weight"] = param(e, e)
        return found

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, grid_of(length))

    def grids(self, length: Length) -> list[tuple[int, int]]:
        """(rows, columns) of every map, and of what goes on."""
        rows, columns = grid_of(length)
        found = [(rows * f, columns * f) if f > 0 else (-(-rows // 2), -(-columns // 2)) for f in FACTORS[:self.reads]]
        return [*found, (2 * found[0][0], 2 * found[0][1])]

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return self.width, self.grids(length)[-1]

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Projections and resampling of what is read, convolutions of every map, and their mixing where they are larger."""
        *grids, last = self.grids(length)
        sizes, square, total = [last, *grids], self.width**2, 0
        for i, factor in enumerate(FACTORS[:self.reads]):
            places, units = tokens_of(grids[i]), 2 if i + 1 < self.reads else 1
            resampled = 0 if factor == 1 else (9 if factor < 0 else 1) * places * square
            total += tokens_of(grid_of(length)) * width * self.width + resampled
            total += units * 2 * 9 * places * square + tokens_of(sizes[i]) * square
        return float(total)

    def build(self, width: int) -> nn.Module:
        layers = built_layers([entry.item for entry in kept(self.layers)], width)
        return ReassembledLayers(layers, width, self.width, self.after())

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        read, reads = list[int](), self.after()
        for i, entry in enumerate(kept(self.layers)):
            stream = draft.items([entry.item], stream, f"{place}.layers.{i}", width)
            read += [stream] * reads.count(i + 1)
        draft.width = self.width
        fused = draft.node(self.label(), "fusion", place, self, stream)
        for other in read[:-1]:
            draft.join(other, fused, SKIP)
        return fused

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        visit("layers", widths)
        return frozenset(numbers("width"))


def _square(channels: Axis, side: int) -> Param:
    """A convolution between as many channels."""
    return param(channels, channels, axis("tap_rows", side, "centre"), axis("tap_columns", side, "centre"))
