"""Layers around which tokens take shortcuts: through an adapter, and from the token before.

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
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from .base import Macro, Part, as_items, at, is_absent, kept
from .looped import stream_parts
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["ShortcutLayers", "Shortcuts"]


class ShortcutLayers(nn.Module):
    """`z = g layer(x) + (1 - g) adapter(x)` and, with `reuse`, `y_t = s z_t + (1 - s) z_{t-1}`, layer after layer, with gates
    of the token: sigmoids, or with `hard` 0 and 1, which have the gradient of the sigmoids. rows: the gates of each layer."""

    def __init__(self, layers: list[nn.Module], adapters: list[nn.Module], rows: tuple[int, ...], width: int, gates: int,
                 reuse: bool, hard: bool):
        super().__init__()
        self.layers, self.adapters = nn.ModuleList(layers), nn.ModuleList(adapters)
        self.rows, self.reuse, self.hard = rows, reuse, hard
        self.depth = nn.Parameter(torch.zeros(gates, width))
        self.depth_bias = nn.Parameter(torch.ones(gates))
        self.steps = nn.Parameter(torch.zeros(gates, width)) if reuse else None
        self.steps_bias = nn.Parameter(torch.ones(gates)) if reuse else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        width, kept = self.depth.shape[1], len(self.layers) if self.reuse else 0
        return {"layers": [initial_state(part, batch, dtype, device) for part in self.layers],
                "adapters": [initial_state(part, batch, dtype, device) for part in self.adapters],
                "before": [torch.zeros(batch, 1, width, dtype=dtype, device=device) for _ in range(kept)], "begun": False}

    def forward(self, x_BTD: Tensor) -> Tensor:
        for row, layer, adapter in zip(self.rows, self.layers, self.adapters, strict=True):
            y_BTD, z_BTD = as_sequence(layer, x_BTD, True), as_sequence(adapter, x_BTD, True)
            z_BTD = torch.lerp(z_BTD, y_BTD, self.gate(x_BTD, self.depth[row], self.depth_bias[row]))
            x_BTD = self.reused(row, x_BTD, z_BTD, z_BTD.flatten(1, -2)[:, :1])
        return x_BTD

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, with a state per layer and adapter, and what every layer gave for the token before."""
        layers, adapters, before = list(state["layers"]), list(state["adapters"]), list(state["before"])
        for index, (row, layer, adapter) in enumerate(zip(self.rows, self.layers, self.adapters, strict=True)):
            y_BTD, layers[index] = step_part(layer, x_BTD, layers[index], True)
            z_BTD, adapters[index] = step_part(adapter, x_BTD, adapters[index], True)
            z_BTD = torch.lerp(z_BTD, y_BTD, self.gate(x_BTD, self.depth[row], self.depth_bias[row]))
            x_BTD = self.reused(row, x_BTD, z_BTD, before[index] if self.reuse and state["begun"] else z_BTD[:, :1])
            if self.reuse:
                before[index] = z_BTD[:, -1:]
        return x_BTD, {"layers": layers, "adapters": adapters, "before": before, "begun": True}

    def reused(self, row: int, x_BTD: Tensor, z_BTD: Tensor, first_B1D: Tensor) -> Tensor:
        """Part of what the layer gave for the token before, which is `first` for the first one."""
        if self.steps is None or self.steps_bias is None:
            return z_BTD
        before_BTD = torch.cat([first_B1D, z_BTD.flatten(1, -2)[:, :-1]], dim=1).view(z_BTD.shape)
        return torch.lerp(before_BTD, z_BTD, self.gate(x_BTD, self.steps[row], self.steps_bias[row]))

    def gate(self, x_BTD: Tensor, weight_D: Tensor, bias: Tensor) -> Tensor:
        """How much of a token takes the long way, [B, T, 1]."""
        score_BT1 = F.linear(x_BTD, weight_D[None], bias[None])
        soft_BT1 = torch.sigmoid(score_BT1)
        return (score_BT1 > 0).to(soft_BT1.dtype) + (soft_BT1 - soft_BT1.detach()) if self.hard else soft_BT1


@dataclass(frozen=True)
class Shortcuts(Macro):
    """Dynamic shortcuts of System-1.5 Reasoning (Wang et al., 2025): tokens go past layers, and take up the step before.

    adapters: for each layer a light block, such as `Block(channel=MLP(ratio=0.125))`, `Block()` for the stream as it is: the
    depth shortcut. A gate of the token weighs the layer and the adapter. reuse: the step shortcut: a second gate weighs what
    the layer gave for this token and for the one before, which is its hidden state at the same depth. hard: the gates are
    decisions, with the gradient of their sigmoids; without it they are sigmoids, as in training. Gates start at log odds
    of 1, in favour of the layer. On a grid the token before is the one to the left, or the last of the row above.

    The form of the gates is read as linear maps of the stream before the layer. Layers run for every token, since others
    read its keys and values, so that no products are saved here: `bp.measured_macs` and the costs count all of them. The
    training in two stages by self-distillation, and thoughts that are hidden states in place of tokens, are left out.
    Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    adapters: Any = ()
    reuse: Any = True
    hard: Any = False
    holds: ClassVar[tuple[str, ...]] = ("layers", "adapters")
    streams: ClassVar[tuple[str, ...]] = ("layers", "adapters")
    proof: ClassVar[str] = "tests/space/test_shortcuts.py -k Shortcuts"
    source: ClassVar[Source] = Source("System-1.5 Reasoning: Traversal in Language and Latent Spaces with Dynamic Shortcuts",
                                      2025, options=("S143",))

    def check(self, width: int, where: str) -> None:
        count = len(as_items(self.layers))
        if len(as_items(self.adapters)) != count or not count:
            raise ValueError(f"adapters has a block for each layer at {where}: got {len(as_items(self.adapters))} for "
                             f"{count}; use repeat(Block(...), {count}), with Block() for none")

    def axes(self, width: int) -> dict[str, Param]:
        layers, d = axis("gates", len(as_items(self.layers))), axis("width", width)
        ways = ("depth", "steps") if self.reuse else ("depth",)
        return {name: declared for way in ways for name, declared in (
            (way, param(layers, d, init="zeros")), (f"{way}_bias", param(layers, init=Init("constant", low=1.0))))}

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return self.decode_macs(width, length) * tokens_of(length)

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float((2 if self.reuse else 1) * len(self.pairs()) * width)

    def state_numel(self, width: int, length: Length) -> int:                        # type: ignore[override]
        return len(self.pairs()) * width if self.reuse else 0

    def pairs(self) -> list[tuple[int, Any, Any]]:
        """The layers that are there, with their index among all that were declared and their adapters."""
        adapters = as_items(self.adapters)
        return [(entry.index, entry.item, adapters[entry.index]) for entry in kept(self.layers)]

    def parts(self, width: int, length: Length) -> list[Part]:
        found = stream_parts(self.layers, "layers", width, length)
        return found + [Part(f"adapters.{position}", item, at("adapters", self.adapters, index), width, length)
                        for position, (index, _, item) in enumerate(self.pairs()) if item is None or not is_absent(item)]

    def build(self, width: int) -> nn.Module:
        pairs = self.pairs()
        adapters = [nn.Identity() if is_absent(item) else item.build(width) for _, _, item in pairs]
        layers = built_layers([layer for _, layer, _ in pairs], width)
        return ShortcutLayers(layers, adapters, tuple(row for row, _, _ in pairs), width, len(as_items(self.layers)),
                              bool(self.reuse), bool(self.hard))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        stream = draft.node(self.label(), "shortcuts", place, self, stream)
        for position, (_, layer, adapter) in enumerate(self.pairs()):
            total = draft.node("gated sum", "sum", "", None,
                               draft.op(layer, f"{place}.layers.{position}", "mixer", stream, width))
            if not is_absent(adapter):
                stream = draft.op(adapter, f"{place}.adapters.{position}", "mixer", stream, width)
            draft.join(stream, total, SKIP)
            stream = total
        return stream
