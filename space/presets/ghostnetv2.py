"""GhostNetV2: bottlenecks of ghost features, all but the first two behind a gate with a long reach.

GhostNetV2: Enhance Cheap Operation with Long-Range Attention (Tang et al., 2022).
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.ghost_transition import GhostTransition
from ..macros.pooled_merging import PooledMerging
from ..operator import Source
from ..operators.conv_stem import ConvStem
from ..operators.ghost import GhostUnit, in_fours
from ..operators.head import ClassifierHead
from ..operators.layernorm import NoNorm
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("GhostNetV2: Enhance Cheap Operation with Long-Range Attention", 2022, systems=("S329",))

Row = tuple[int, int, int, bool, int]
# side of the thinning filter, hidden channels, channels, squeeze and excitation, stride
ROWS: tuple[Row, ...] = (
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1), (3, 480, 112, True, 1),
    (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1))
SMALL_ROWS: tuple[Row, ...] = ((3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, True, 1), (5, 72, 32, True, 1))
# widths over those of the table, the table
SIZES: dict[str, tuple[float, tuple[Row, ...]]] = {"tiny": (1.0, SMALL_ROWS), "1x": (1.0, ROWS), "1.3x": (1.3, ROWS),
                                                   "1.6x": (1.6, ROWS)}


def bottlenecks(times: float, rows: tuple[Row, ...]) -> list[Any]:
    """The items of a body, one for every row, at this many times the table's widths."""
    items: list[Any] = []
    before = in_fours(16 * times)
    for number, (thin, hidden, width, squeeze, stride) in enumerate(rows):
        options: dict[str, Any] = {"expand": in_fours(hidden * times) / before, "squeeze": squeeze,
                                   "gate": None if number < 2 else 5}
        after = in_fours(width * times)
        if stride == 1 and after == before:
            items.append(Block(mixer=GhostUnit(**options), norm=NoNorm()))
        else:
            items.append(GhostTransition(width=after, stride=stride, thin=thin, **options))
        before = after
    return items


def space(image: int = 28, channels: int = 1, classes: int = 10, patch: int = 2) -> Space:
    """Two stages: their widths and depths, and per block expansion, gate, and squeeze and excitation."""
    def options() -> dict[str, Any]:
        return {"expand": choice(2, 3, 4), "gate": choice(None, 3, 5), "squeeze": choice(False, True)}

    unit = Block(mixer=GhostUnit(**options()), norm=NoNorm())
    body = (repeat(unit, times=integer(1, 2)), GhostTransition(width=choice(24, 32), thin=choice(3, 5), **options()),
            repeat(unit, times=integer(1, 3)))
    return Space(embed=ConvStem(patch, channels, image, activation="relu", last=True), width=choice(16, 24), body=body,
                 head=ClassifierHead(classes), norm=NoNorm())


def fixed(size: str = "tiny") -> Architecture:
    """GhostNetV2 "1x" (6.1M), "1.3x" (8.9M) or "1.6x" (12.3M), for 224 pixels and 1,000 classes.

    "tiny" is for 28 pixels and 10 classes.
    """
    times, rows = at_size(SIZES, size)
    is_tiny = size == "tiny"
    image = {"channels": 1, "image": 28} if is_tiny else {"channels": 3, "image": 224}
    last = PooledMerging(width=in_fours(rows[-1][1] * times), stride=1, activation="relu")
    return only(embed=ConvStem(patch=2, activation="relu", last=True, **image), width=in_fours(16 * times),
                body=(*bottlenecks(times, rows), last),
                head=ClassifierHead(10, hidden=32) if is_tiny else ClassifierHead(1000, hidden=1280), norm=NoNorm())
