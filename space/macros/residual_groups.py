"""Layers in groups whose features are fused in the end.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import SKIP
from ..operator import Source
from ..operators.checks import is_whole
from .residual import Residual, residual_label
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["FusedLayers", "GroupFusion", "group_ends"]


def group_ends(layers: int, groups: int) -> list[int]:
    """The last layer of every group: groups of equal size, the first ones larger by one where it does not come out even."""
    size, more = divmod(layers, groups)
    ends = [size * (g + 1) + min(g + 1, more) - 1 for g in range(groups)]
    return ends


class FusedLayers(nn.Module):
    """The plain stream; what leaves is a weighted sum of the normalised stream after every group."""

    shares = True

    def __init__(self, layers: list[nn.Module], width: int, ends: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.ends = ends
        self.gain = nn.Parameter(torch.ones(len(ends), width))

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        features = []
        for layer in self.layers:
            x_BTD = as_sequence(layer, x_BTD, True, shared)
            features.append(x_BTD)
        return self.fused(features)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per layer."""
        features, after = [], []
        for layer, before in zip(self.layers, state, strict=True):
            x_BTD, new = step_part(layer, x_BTD, before, True, shared)
            features.append(x_BTD)
            after.append(new)
        return self.fused(features), after

    def fused(self, features: list[Tensor]) -> Tensor:
        total_BTD = torch.zeros_like(features[0])
        for group, end in enumerate(self.ends):
            normed_BTD = F.layer_norm(features[end], features[end].shape[-1:])
            total_BTD = total_BTD + self.gain[group] * normed_BTD
        return total_BTD


@dataclass(frozen=True)
class GroupFusion(Residual):
    """GTrans (Yang et al., 2022): layers in groups, and a fusion of one feature per group instead of the last output.

    The feature of a group is the stream after its last layer; each is normalised and weighed by a gain per channel, which
    starts at 1 / `groups`. Both sides of an `EncoderDecoder` take a stack of their own. A stack of fewer layers than groups
    has a group per layer.
    """

    groups: Any = 3
    proof: ClassVar[str] = "tests/space/test_residuals.py -k fused"
    source: ClassVar[Source] = Source("GTrans: Grouping and Fusing Transformer Layers for Neural Machine Translation", 2022,
                                      systems=("S223",))

    def check(self, where: str) -> None:
        if not is_whole(self.groups):
            raise ValueError(f"groups is 1 or more at {where}: got {self.groups!r}")

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        groups = min(self.groups, layers)
        start = Init("constant", low=1 / self.groups)
        return {"gain": param(axis("groups", groups), axis("width", width), init=start)} if layers else {}

    def join(self, layers: list[nn.Module], width: int, units: int) -> nn.Module | None:
        return FusedLayers(layers, width, group_ends(len(layers), min(self.groups, len(layers)))) if layers else None

    def sketch_layers(self, draft: Draft, place: str, outputs: list[int]) -> int:
        """The stream after every group leads to one node."""
        ends = [outputs[end] for end in group_ends(len(outputs), min(self.groups, len(outputs)))]
        fused = draft.node(residual_label(self), "sum", place, None, ends[-1])
        for end in ends[:-1]:
            draft.join(end, fused, SKIP)
        return fused
