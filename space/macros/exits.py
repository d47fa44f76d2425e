"""Layers that the stream may leave early.

Legend: B batch, T tokens, R sequences that are still inside, D width.
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
from .base import Macro, Part, as_items, is_absent, kept
from .looped import stream_parts
from .running import as_sequence, initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["EarlyExit", "ExitLayers"]


class ExitLayers(nn.Module):
    """Layers, and where the stream may leave them: after `depths[i]` layers, through `adapters[i]`.

    leave: None, the whole depth; a number, at that exit; "token" or "sequence", each by its own halting score.
    """

    def __init__(self, layers: list[nn.Module], adapters: list[nn.Module], depths: tuple[int, ...], leave: Any,
                 width: int):
        super().__init__()
        self.layers, self.adapters = nn.ModuleList(layers), nn.ModuleList(adapters)
        self.depths, self.leave = depths, leave
        self.halt = nn.Parameter(torch.zeros(len(depths), width))
        self.halt_bias = nn.Parameter(torch.full((len(depths),), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.leave == "token":
            return self.by_token(x)
        if self.leave == "sequence":
            return self.by_sequence(x)
        last = len(self.layers) if self.leave is None else self.depths[self.leave]
        for layer in self.layers[:last]:
            x = as_sequence(layer, x, True)
        return x if self.leave is None else as_sequence(self.adapters[self.leave], x, True)

    def every(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What every exit gives, and last the whole depth, all of one run; and the halting scores of the exits."""
        found: list[Tensor] = []
        scores: list[Tensor] = []
        for index, layer in enumerate(self.layers, 1):
            x = as_sequence(layer, x, True)
            for number, depth in enumerate(self.depths):
                if depth == index:
                    found.append(as_sequence(self.adapters[number], x, True))
                    scores.append(self.score(x, number))
        return [*found, x], scores

    def by_token(self, x_BTD: Tensor) -> Tensor:
        """Tokens that have left stay as they were in all layers after, where others see them so."""
        left_BT1 = torch.zeros_like(x_BTD[..., :1], dtype=torch.bool)
        out_BTD = x_BTD
        for index, layer in enumerate(self.layers, 1):
            x_BTD = torch.where(left_BT1, x_BTD, as_sequence(layer, x_BTD, True))
            for number, depth in enumerate(self.depths):
                if depth == index:
                    now_BT1 = ~left_BT1 & (self.score(x_BTD, number) > 0)
                    out_BTD = torch.where(now_BT1, as_sequence(self.adapters[number], x_BTD, True), out_BTD)
                    left_BT1 = left_BT1 | now_BT1
        return torch.where(left_BT1, out_BTD, x_BTD)

    def by_sequence(self, x: Tensor) -> Tensor:
        """Sequences leave by the mean over their tokens; a layer runs over those that are still inside."""
        out, inside_R = x, torch.arange(len(x), device=x.device)
        for index, layer in enumerate(self.layers, 1):
            if len(inside_R):
                x = as_sequence(layer, x, True)
            for number, depth in enumerate(self.depths):
                if depth == index and len(inside_R):
                    leaves_R = self.score(x.flatten(1, -2).mean(1), number).squeeze(-1) > 0
                    if leaves_R.any():
                        out = out.index_copy(0, inside_R[leaves_R], as_sequence(self.adapters[number], x[leaves_R], True))
                        x, inside_R = x[~leaves_R], inside_R[~leaves_R]
        return out.index_copy(0, inside_R, x)

    def score(self, x: Tensor, number: int) -> Tensor:
        """The log odds of leaving at an exit, [..., 1]."""
        return F.linear(x, self.halt[number:number + 1], self.halt_bias[number:number + 1])

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> tuple[list[Any], list[Any]]:
        last = self.depths[self.leave] if isinstance(self.leave, int) else len(self.layers)
        return ([initial_state(layer, batch, dtype, device) if index < last else {}
                 for index, layer in enumerate(self.layers)],
                [initial_state(adapter, batch, dtype, device) if self.leave in ("token", number) else {}
                 for number, adapter in enumerate(self.adapters)])

    def step(self, x_BTD: Tensor, state: tuple[list[Any], list[Any]]) -> tuple[Tensor, tuple[list[Any], list[Any]]]:
        """The next tokens, with a state per layer and adapter; what does not run keeps its state."""
        layers, adapters = list(state[0]), list(state[1])
        left_BT1 = torch.zeros_like(x_BTD[..., :1], dtype=torch.bool)
        out_BTD = x_BTD
        last = self.depths[self.leave] if isinstance(self.leave, int) else len(self.layers)
        for index, layer in enumerate(self.layers[:last]):
            y_BTD, layers[index] = step_part(layer, x_BTD, layers[index], True)
            x_BTD = torch.where(left_BT1, x_BTD, y_BTD)
            for number, adapter in enumerate(self.adapters):
                if self.depths[number] == index + 1 and self.leave in ("token", number):
                    y_BTD, adapters[number] = step_part(adapter, x_BTD, adapters[number], True)
                    now_BT1 = ~left_BT1
                    if self.leave == "token":
                        now_BT1 = now_BT1 & (self.score(x_BTD, number) > 0)
                    out_BTD = torch.where(now_BT1, y_BTD, out_BTD)
                    left_BT1 = left_BT1 | now_BT1
        return torch.where(left_BT1, out_BTD, x_BTD), (layers, adapters)


@dataclass(frozen=True)
class EarlyExit(Macro):
    """Layers that the stream may leave early, through an adapter, into the norm and head that all exits share.

    exits: after how many layers. adapters: one per exit, a block (Balcony, Jamialahmadi et al., 2025), `Block()` for none.
    leave: None, the whole depth, as if there were no exits; a number, at that exit, a network of that depth with the same
    weights; "token" or "sequence", by a halting score (Depth-Adaptive Transformer, Elbayad et al., 2020): the sigmoid of a
    linear map of the stream at the exit is above a half, the geometric form, of the token or of the mean of its sequence. A
    token that has left stays as it was in later layers, where others read its keys; so those layers run for all tokens and
    "token" saves no products here, while a sequence that has left is dropped from the batch. "sequence" looks at all tokens:
    it is not causal and does not stream. The classifiers of exits are adapters, as the head is shared.

    Training is by `bp.exit_logits`, the logits of all exits from one pass: `bp.exit_loss` averages their task losses,
    `bp.exit_distillation` compares them with the whole depth, `bp.halting_loss` teaches the scores. Costs take the whole
    depth for "token" and "sequence"; `bp.measured_macs` counts what ran. Put it last in a body.
    Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    exits: Any = (1,)
    adapters: Any = ()
    leave: Any = None
    holds: ClassVar[tuple[str, ...]] = ("layers", "adapters")
    streams: ClassVar[tuple[str, ...]] = ("layers", "adapters")
    proof: ClassVar[str] = "tests/space/test_depth.py -k EarlyExit"
    source: ClassVar[Source] = Source("Depth-Adaptive Transformer", 2020, systems=("S051", "S151"))

    def check(self, width: int, where: str) -> None:
        exits = self.exits
        if not isinstance(exits, tuple) or not exits or list(exits) != sorted(set(exits)) or exits[0] < 1:
            raise ValueError(f"exits are numbers of layers, growing from at least 1, at {where}: got {exits!r}; use (2, 4)")
        if len(as_items(self.adapters)) not in (0, len(exits)):
            raise ValueError(f"an adapter for each exit, or none, at {where}: got {len(as_items(self.adapters))} for "
                             f"{len(exits)}")
        if exits[-1] >= len(as_items(self.layers)):
            raise ValueError(f"exits come before the last layer at {where}: got {exits} of {len(as_items(self.layers))} "
                             "layers")
        ways = (None, "token", "sequence", *range(len(exits)))
        if self.leave not in ways or isinstance(self.leave, bool):
            raise ValueError(f"leave is one of {', '.join(map(repr, ways))} at {where}: got {self.leave!r}")

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(self.leave != "sequence" and super().causal)

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return bool(self.leave != "sequence" and super().streaming)

    def depths(self) -> tuple[int, ...]:
        """The exits, counted in the layers that are there."""
        present = [entry.index for entry in kept(self.layers)]
        return tuple(sum(index < depth for index in present) for depth in self.exits)

    def axes(self, width: int) -> dict[str, Param]:
        e, d = axis("exits", len(self.exits)), axis("width", width)
        return {"halt": param(e, d, init="zeros"), "halt_bias": param(e, init=Init("constant", low=-1.0))}

    def decides(self) -> bool:
        """Whether the stream itself says where it leaves."""
        return self.leave in ("token", "sequence")

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        tokens = {"token": tokens_of(length), "sequence": 1}.get(self.leave, 0)
        return float(len(self.exits) * width * tokens)

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float(len(self.exits) * width) if self.decides() else 0.0

    def parts(self, width: int, length: Length) -> list[Part]:
        last = self.depths()[self.leave] if isinstance(self.leave, int) else None
        trunk = stream_parts(self.layers, "layers", width, length)
        found = [part if last is None or index < last else part._replace(passes=()) for index, part in enumerate(trunk)]
        for number, item in enumerate(as_items(self.adapters)):
            if item is None or not is_absent(item):
                runs = self.leave in ("token", number)
                found.append(Part(f"adapters.{number}", item, ("adapters", number), width, length,
                                  passes=None if runs else ()))
        return found

    def build(self, width: int) -> nn.Module:
        adapters = [nn.Identity() if is_absent(item) else item.build(width) for item in as_items(self.adapters)]
        layers = built_layers([entry.item for entry in kept(self.layers)], width)
        return ExitLayers(layers, adapters or [nn.Identity() for _ in self.exits], self.depths(), self.leave, width)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        stream = draft.node(self.label(), "exits", place, self, stream)
        end, adapters = draft.node("leave", "exits"), as_items(self.adapters)
        for position, entry in enumerate(kept(self.layers)):
            stream = draft.op(entry.item, f"{place}.layers.{position}", "mixer", stream, width)
            for number in (i for i, depth in enumerate(self.depths()) if depth == position + 1):
                leaving = stream
                if adapters and not is_absent(adapters[number]):
                    leaving = draft.op(adapters[number], f"{place}.adapters.{number}", "mixer", stream, width)
                draft.join(leaving, end, SKIP)
        draft.join(stream, end)
        return end
