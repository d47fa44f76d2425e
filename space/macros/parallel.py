"""Branches side by side.

Legend: B batch, T tokens, D width, N branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from .base import Macro, Part, as_items, at
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Parallel", "ParallelBranches"]

MERGES = ("sum", "concat", "gated")


class ParallelBranches(nn.Module):
    """All branches read the same input; their outputs are summed, gated per token, or concatenated and projected."""

    shares = True

    def __init__(self, branches: list[nn.Module], spatial: list[bool], merge: str, width: int):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.spatial, self.merge = spatial, merge
        if merge == "concat":
            self.project = nn.Linear(len(branches) * width, width, bias=False)
        elif merge == "gated":
            self.gate = nn.Linear(width, len(branches), bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> list[Any]:
        return [initial_state(branch, batch, dtype, device) for branch in self.branches]

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.merged(x_BTD, [as_sequence(branch, x_BTD, spatial, shared)
                                   for branch, spatial in zip(self.branches, self.spatial, strict=True)])

    def step(self, x_BTD: Tensor, state: list[Any] | None, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        """The next tokens through every branch with its own state."""
        states = [None] * len(self.branches) if state is None else state
        outputs, after = [], []
        for branch, spatial, before in zip(self.branches, self.spatial, states, strict=True):
            y_BTD, new = step_part(branch, x_BTD, before, spatial, shared)
            outputs.append(y_BTD)
            after.append(new)
        return self.merged(x_BTD, outputs), after

    def merged(self, x_BTD: Tensor, outputs: list[Tensor]) -> Tensor:
        if self.merge == "concat":
            y_BTD: Tensor = self.project(torch.cat(outputs, dim=-1))
            return y_BTD
        if self.merge == "gated":
            gate_BTN = F.softmax(self.gate(x_BTD), dim=-1)
            outputs = [gate_BTN[..., n:n + 1] * y for n, y in enumerate(outputs)]
        total = outputs[0]
        for y_BTD in outputs[1:]:
            total = total + y_BTD
        return total


@dataclass(frozen=True)
class Parallel(Macro):
    """Operators side by side on the same input, as mixer or channel of a block.

    branches: operators; a repeat, a subset or a tuple of choices. `Identity()` passes its input on, `Zero()` is a branch
    that is off. merge: "sum"; "gated", a softmax over branches from each token (Sparsely-Gated Mixture-of-Experts
    without the sparsity, Shazeer et al., 2017); "concat", concatenation and a projection back to the width (Going
    Deeper with Convolutions, Szegedy et al., 2014). `Block(mixer=Parallel(branches=(Attention(), SwiGLU())))` is
    attention beside the feed-forward layer under one norm (PaLM, Chowdhery et al., 2022).
    The order of branches does not tell two networks apart.
    """

    branches: Any
    merge: Any = "sum"
    holds: ClassVar[tuple[str, ...]] = ("branches",)
    kind: ClassVar[str] = "mixer"
    source: ClassVar[Source] = Source("Going Deeper with Convolutions", 2014)

    def check(self, width: int, where: str) -> None:
        if self.merge not in MERGES:
            raise ValueError(f"merge is one of {', '.join(MERGES)} at {where}: got {self.merge!r}")
        if not as_items(self.branches):
            raise ValueError(f"parallel branches need at least one operator at {where}: got none")

    @property
    def keeps_zero(self) -> bool:                                                    # type: ignore[override]
        return all(branch.keeps_zero for branch in as_items(self.branches))

    def axes(self, width: int) -> dict[str, Param]:
        d, n = axis("width", width), axis("branches", len(as_items(self.branches)))
        if self.merge == "concat":
            return {"project.weight": param(d, n * axis("width", width))}
        return {"gate.weight": param(n, d)} if self.merge == "gated" else {}

    def parts(self, width: int, length: Length) -> list[Part]:
        return [Part(f"branches.{i}", item, at("branches", self.branches, i), width, length)
                for i, item in enumerate(as_items(self.branches))]

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(self.matrix_numel(width) * tokens_of(length))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float(self.matrix_numel(width))

    def build(self, width: int) -> nn.Module:
        items = as_items(self.branches)
        return ParallelBranches([item.build(width) for item in items], [item.spatial for item in items], self.merge, width)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        merged = draft.node(self.label(), "merge", place, self)
        for part in self.parts(width, 1):
            if getattr(part.item, "is_zero", False) and self.merge == "sum":
                continue
            draft.join(draft.part(part, stream, place, "mixer"), merged)
        return merged
