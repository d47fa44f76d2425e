"""Three stages, of which each tells what its states hold.

Legend: B batch, H and W rows and columns of tokens, D width, F widths of all stages together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..model import built_layers
from ..operator import Length, Source
from ..operators.hidden_state_mixer import HiddenStateMixer
from ..plan import flow
from ..tree import placed
from .base import Macro, Numbers, Part, Visit, as_items, kept
from .looped import stream_parts
from .running import as_sequence

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["FusedStates", "StateFusion"]

STAGES = ("first", "second", "third")


class FusedStates(nn.Module):
    """One token: the means of every stage's states, then that of the last tokens, each times its share."""

    shares = True

    def __init__(self, first: list[nn.Module], second: list[nn.Module], third: list[nn.Module]):
        super().__init__()
        self.first, self.second, self.third = nn.ModuleList(first), nn.ModuleList(second), nn.ModuleList(third)
        self.share = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        told: list[Tensor] = []
        own = {} if shared is None else dict(shared)
        own["told"] = told
        for stage in (self.first, self.second, self.third):
            for layer in stage:
                x = as_sequence(layer, x, True, own)
        parts = [*told, x.flatten(1, -2).mean(1)]
        weights = torch.softmax(self.share, 0)
        return torch.cat([weight * part for weight, part in zip(weights.unbind(), parts, strict=True)], -1)[:, None]


@dataclass(frozen=True)
class StateFusion(Macro):
    """The multi-stage hidden state fusion of EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space
    Duality (Lee et al., 2024).

    Stands last in a body, before a `ClassifierHead`. first, second, third: layers of each stage, the transition at the
    beginning of the next stage; the last `HiddenStateMixer` of each, and no other, says tells=True. What leaves is one token
    as wide as all stages and the last one once more: the normalised mean states of each stage and the mean of the last
    tokens, whose norm is an item `StreamNorm(LayerNorm())` behind the layers of the third stage. Each part is multiplied by
    its share, a softmax of four learned numbers.

    The paper gives every part class scores of its own and sums them in these shares; a head over the token is the same
    function, with one bias where the paper's four add up to one.
    """

    first: Any
    second: Any
    third: Any
    holds: ClassVar[tuple[str, ...]] = STAGES
    streams: ClassVar[tuple[str, ...]] = STAGES
    causal: ClassVar[bool] = False                                                   # type: ignore[misc]
    streaming: ClassVar[bool] = False                                                # type: ignore[misc]
    proof: ClassVar[str] = "tests/space/operators/test_state_space.py -k states_of_every_stage"
    source: ClassVar[Source] = Source("EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space "
                                      "Duality", 2024, options=("S361",))

    def items(self, stage: str) -> list[Any]:
        """The layers of a stage that are there."""
        return [entry.item for entry in kept(getattr(self, stage))]

    def check_told(self, width: int) -> None:
        """Raise ValueError unless one mixer of every stage tells its states, at the stage's width."""
        if any(item is None for stage in STAGES for item in as_items(getattr(self, stage))):
            return                                                # placeholders: what stands there is checked in time
        for stage in STAGES:
            items = tuple(self.items(stage))
            tell = [place.width for place in placed(items, width, 1) if _tells(place.operator)]
            width = flow(items, width, 1)[0]
            if tell != [width]:
                raise ValueError(f"the last HiddenStateMixer of a stage tells its states, at its width, at {stage}: got "
                                 f"{len(tell)} of widths {tell}; write HiddenStateMixer(tells=True) in one layer")

    def axes(self, width: int) -> dict[str, Param]:
        return {"share": param(axis("parts", 4), share="own", init="ones")}

    def parts(self, width: int, length: Length) -> list[Part]:
        self.check_told(width)
        found = []
        for stage in STAGES:
            found += stream_parts(getattr(self, stage), stage, width, length)
            width, length = self.through(stage, width, length)
        return found

    def through(self, stage: str, width: int, length: Length) -> tuple[int, Length]:
        """Width and length behind a stage."""
        for item in self.items(stage):
            if item is not None:
                width, length = item.out(width, length)
        return width, length

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        total = 0
        for stage in STAGES:
            width, _ = self.through(stage, width, 1)
            total += width
        return total + width, 1

    def build(self, width: int) -> nn.Module:
        stages = []
        for stage in STAGES:
            stages.append(built_layers(self.items(stage), width))
            width, _ = self.through(stage, width, 1)
        return FusedStates(*stages)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        total, begin, inner = self.out(width, 1)[0], len(draft.nodes), width
        for stage in STAGES:
            stream = draft.items(self.items(stage), stream, f"{place}.{stage}", inner)
            inner, _ = self.through(stage, inner, 1)
        draft.width = total
        fused = draft.node("StateFusion", "sum", place, self, stream)
        for index, node in enumerate(draft.nodes[begin:fused], begin):
            if _tells(node.operator):
                draft.join(index, fused, "told")
        return fused

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        behind = []
        for stage in STAGES:
            widths = visit(stage, widths)
            behind.append(widths)
        first, second, third = behind
        return frozenset(a + b + 2 * c for a in first for b in second for c in third)


def _tells(operator: Any) -> bool:
    return isinstance(operator, HiddenStateMixer) and bool(operator.tells)
