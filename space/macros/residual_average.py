"""A residual topology in which every unit reads a learned weighted sum of what all units before it gave.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..graph import SKIP
from ..operator import Source
from .residual import Residual, residual_label
from .units import UnitLayers

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["AveragedFeatures", "FeatureAverage"]


class AveragedFeatures(UnitLayers):
    """What unit k reads, and what leaves in the end, is the sum of `weights * g` over the input and all outputs so far."""

    def __init__(self, layers: list[nn.Module], units: int):
        super().__init__(layers)
        self.weights = nn.Parameter(torch.ones((units + 1) * (units + 2) // 2))

    def read(self, k: int, held: list[Tensor]) -> Tensor:
        total = torch.zeros_like(held[0])
        for j, g_BTD in enumerate(held):
            total = total + self.weights[k * (k + 1) // 2 + j] * g_BTD
        return total

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        return [*held, y_BTD]

    def finish(self, held: list[Tensor]) -> Tensor:
        return self.read(len(held) - 1, held)


@dataclass(frozen=True)
class FeatureAverage(Residual):
    """The weighted averaging of earlier features of MambaMixer (Behrouz et al., 2024): every token mixer and every channel
    mixer reads a learned weighted sum of the input and of the outputs of all token and channel mixers before it.

    One number per pair, for what leaves the stack as well; all start at 1, which is the plain residual stream. In a stack of
    blocks whose mixer is `Mamba` and whose channel mixer is `SelectiveChannelMixer` it is the paper's network.
    """

    proof: ClassVar[str] = "tests/space/test_residuals.py -k average_of_features"
    source: ClassVar[Source] = Source("MambaMixer: Efficient Selective State Space Models with Dual Token and Channel "
                                      "Selection", 2024, options=("S350",))

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        """Rows of growing length one after the other, so that fewer units are a prefix."""
        pairs = (units + 1) * (units + 2) // 2
        return {"weights": param(axis("unit_pairs", pairs), init="ones")} if units else {}

    def join(self, layers: list[nn.Module], width: int, units: int) -> nn.Module | None:
        return AveragedFeatures(layers, units) if units else None

    def sketch_units(self, draft: Draft, stream: int, place: str, units: list[Callable[[int], int]]) -> int:
        """Every unit reads a node that all earlier ones lead to."""
        history = [stream]
        for unit in [*units, None]:
            mixed = draft.node(residual_label(self), "mix", place, None, history[-1])
            for earlier in history[:-1]:
                draft.join(earlier, mixed, SKIP)
            if unit is not None:
                history.append(unit(mixed))
        return mixed
