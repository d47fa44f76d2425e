"""Layers that the stream may leave early from a second stream, which runs ahead of the first.

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

__all__ = ["MultiRate", "MultiRateLayers"]


class MultiRateLayers(nn.Module):
    """Layers h and, beside the first of them, adapters of a faster stream p:
    `p_i = adapter_i(p_{i-1}) + gate_i (h_i - h_{i-1})`, where p starts as h, anew after every exit.

    The stream leaves after `depths[i]` layers with what p is there. leave: None, the whole depth, without p; a number, at
    that exit; "token", each by its halting score. rate: layers of h that one step of p is trained to stand for.
    rows: the gate of each adapter.
    """

    def __init__(self, layers: list[nn.Module], fast: list[nn.Module], rows: tuple[int, ...], depths: tuple[int, ...],
                 leave: Any, rate: float, width: int, gates: int):
        super().__init__()
        self.layers, self.fast = nn.ModuleList(layers), nn.ModuleList(fast)
        self.rows, self.depths, self.leave, self.rate = rows, depths, leave, rate
        self.gate = nn.Parameter(torch.ones(gates, width))
        self.halt = nn.Parameter(torch.zeros(len(depths), width))
        self.halt_bias = nn.Parameter(torch.full((len(depths),), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.leave is None:
            for layer in self.layers:
                x = as_sequence(layer, x, True)
            return x
        left, out, fast = torch.zeros_like(x[..., :1], dtype=torch.bool), x, x
        for index in range(self.last()):
            before, x = x, torch.where(left, x, as_sequence(self.layers[index], x, True))
            if index < len(self.fast):
                fast = as_sequence(self.fast[index], fast, True) + self.gate[self.rows[index]] * (x - before)
            for number, depth in enumerate(self.depths):
                if depth == index + 1:
                    now = self.leaves(fast, left, number)
                    out, left, fast = torch.where(now, fast, out), left | now, x
        return torch.where(left, out, x)

    def last(self) -> int:
        """How many layers run."""
        return self.depths[self.leave] if isinstance(self.leave, int) else len(self.layers)

    def leaves(self, fast: Tensor, left: Tensor, number: int) -> Tensor:
        """Which tokens go at an exit, [..., 1]."""
        if self.leave == "token":
            return ~left & (self.score(fast, number) > 0)
        return torch.full_like(left, self.leave == number)

    def score(self, x: Tensor, number: int) -> Tensor:
        """The log odds of leaving at an exit, [..., 1]."""
        return F.linear(x, self.halt[number:number + 1], self.halt_bias[number:number + 1])

    def both(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stream before every layer and last after all; the faster one after each layer that it has an adapter for."""
        slow, fast, ahead = [x], [], x
        for index, layer in enumerate(self.layers):
            slow.append(as_sequence(layer, slow[-1], True))
            if index < len(self.fast):
                ahead = as_sequence(self.fast[index], ahead, True) + self.gate[self.rows[index]] * (slow[-1] - slow[-2])
                fast.append(ahead)
                ahead = slow[-1] if index + 1 in self.depths else ahead
        return slow, fast

    def every(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What every exit gives, and last the whole depth, all of one run; and the halting scores of the exits."""
        slow, fast = self.both(x)
        found = [fast[depth - 1] if depth else x for depth in self.depths]
        return [*found, slow[-1]], [self.score(each, number) for number, each in enumerate(found)]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> tuple[list[Any], list[Any]]:
        return ([initial_state(layer, batch, dtype, device) if index < self.last() else {}
                 for index, layer in enumerate(self.layers)],
                [initial_state(part, batch, dtype, device) if self.leave is not None and index < self.last() else {}
                 for index, part in enumerate(self.fast)])

    def step(self, x_BTD: Tensor, state: tuple[list[Any], list[Any]]) -> tuple[Tensor, tuple[list[Any], list[Any]]]:
        """The next tokens, with a state per layer and adapter; what does not run keeps its state."""
        layers, adapters = list(state[0]), list(state[1])
        left_BT1, out_BTD, fast_BTD = torch.zeros_like(x_BTD[..., :1], dtype=torch.bool), x_BTD, x_BTD
        for index in range(self.last()):
            y_BTD, layers[index] = step_part(self.layers[index], x_BTD, layers[index], True)
            before_BTD, x_BTD = x_BTD, torch.where(left_BT1, x_BTD, y_BTD)
            if self.leave is not None and index < len(self.fast):
                y_BTD, adapters[index] = step_part(self.fast[index], fast_BTD, adapters[index], True)
                fast_BTD = y_BTD + self.gate[self.rows[index]] * (x_BTD - before_BTD)
            for number, depth in enumerate(self.depths):
                if self.leave is not None and depth == index + 1:
                    now_BT1 = self.leaves(fast_BTD, left_BT1, number)
                    out_BTD = torch.where(now_BT1, fast_BTD, out_BTD)
                    left_BT1, fast_BTD = left_BT1 | now_BT1, x_BTD
        return torch.where(left_BT1, out_BTD, x_BTD), (layers, adapters)


@dataclass(frozen=True)
class MultiRate(Macro):
    """Mixture of Multi-rate Residuals (M2R2, Bhendawade et al., 2025): exits read a faster residual stream, which tells early
    what the slower one will be `rate` times as deep.

    exits: after how many layers. fast: for each layer before the last exit a light block, such as
    `Block(channel=MLP(ratio=0.125))`, that moves the faster stream on by more than the layer moves the slower. rate:
    how many layers of the slower stream one step of the faster one stands for, which `bp.rate_loss` trains. leave: as of
    `EarlyExit`: None, the whole depth; a number, at that exit; "token", by a halting score. `bp.exit_logits` gives the
    guesses of the exits and the answer of the whole depth from one pass, which is what self-speculation compares.

    The stream's form is read as `p_i = fast_i(p_{i-1}) + gate_i (h_i - h_{i-1})`: it goes along with the slower one by a
    gate per channel, 1 at first, and adds what its block does; after an exit it starts anew. With blocks that add nothing
    it is the slower stream, and this `EarlyExit` without adapters. Fetching experts ahead is left out. Costs take the whole
    depth for "token". Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    exits: Any = (1,)
    fast: Any = ()
    rate: Any = 2
    leave: Any = None
    holds: ClassVar[tuple[str, ...]] = ("layers", "fast")
    streams: ClassVar[tuple[str, ...]] = ("layers", "fast")
    proof: ClassVar[str] = "tests/space/test_shortcuts.py -k MultiRate"
    source: ClassVar[Source] = Source("M2R2: Mixture of Multi-Rate Residuals for Efficient Transformer Inference", 2025,
                                      options=("S085",))

    def check(self, width: int, where: str) -> None:
        exits = self.exits
        if not isinstance(exits, tuple) or not exits or list(exits) != sorted(set(exits)) or exits[0] < 1:
            raise ValueError(f"exits are numbers of layers, growing from at least 1, at {where}: got {exits!r}; use (2, 4)")
        if exits[-1] >= len(as_items(self.layers)):
            raise ValueError(f"exits come before the last layer at {where}: got {exits} of {len(as_items(self.layers))} "
                             "layers")
        if len(as_items(self.fast)) != exits[-1]:
            raise ValueError(f"fast has a block for each layer before the last exit at {where}: got "
                             f"{len(as_items(self.fast))} for {exits[-1]}; use repeat(Block(...), {exits[-1]})")
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)) or not self.rate >= 1:
            raise ValueError(f"rate must be a number of at least 1 at {where}: got {self.rate!r}; use 2")
        ways = (None, "token", *range(len(exits)))
        if self.leave not in ways or isinstance(self.leave, bool):
            raise ValueError(f"leave is one of {', '.join(map(repr, ways))} at {where}: got {self.leave!r}")

    def axes(self, width: int) -> dict[str, Param]:
        e, d = axis("exits", len(self.exits)), axis("width", width)
        return {"gate": param(axis("fast", self.exits[-1]), d, share="own", init="ones"), "halt": param(e, d, init="zeros"),
                "halt_bias": param(e, init=Init("constant", low=-1.0))}

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return self.decode_macs(width, length) * tokens_of(length)

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return float(len(self.exits) * width) if self.leave == "token" else 0.0

    def depths(self) -> tuple[int, ...]:
        """The exits, counted in the layers that are there."""
        present = [entry.index for entry in kept(self.layers)]
        return tuple(sum(index < depth for index in present) for depth in self.exits)

    def beside(self) -> list[tuple[int, Any]]:
        """The light blocks of the layers that are there, with their index among all that were declared."""
        fast = as_items(self.fast)
        return [(entry.index, fast[entry.index]) for entry in kept(self.layers) if entry.index < self.exits[-1]]

    def parts(self, width: int, length: Length) -> list[Part]:
        last = self.depths()[self.leave] if isinstance(self.leave, int) else None
        trunk = stream_parts(self.layers, "layers", width, length)
        found = [part if last is None or index < last else part._replace(passes=()) for index, part in enumerate(trunk)]
        for position, (index, item) in enumerate(self.beside()):
            if item is None or not is_absent(item):
                runs = self.leave == "token" or (last is not None and position < last)
                found.append(Part(f"fast.{position}", item, at("fast", self.fast, index), width, length,
                                  passes=None if runs else ()))
        return found

    def build(self, width: int) -> nn.Module:
        layers = built_layers([entry.item for entry in kept(self.layers)], width)
        fast = [nn.Identity() if is_absent(item) else item.build(width) for _, item in self.beside()]
        return MultiRateLayers(layers, fast, tuple(index for index, _ in self.beside()), self.depths(), self.leave,
                               float(self.rate), width, self.exits[-1])

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        stream = fast = draft.node(self.label(), "exits", place, self, stream)
        end, beside = draft.node("leave", "exits"), self.beside()
        for position, entry in enumerate(kept(self.layers)):
            stream = draft.op(entry.item, f"{place}.layers.{position}", "mixer", stream, width)
            if position < len(beside):
                if not is_absent(beside[position][1]):
                    fast = draft.op(beside[position][1], f"{place}.fast.{position}", "mixer", fast, width)
                fast = self._joined(draft, fast, stream)
            if position + 1 in self.depths():
                draft.join(fast, end, SKIP)
                fast = stream
        draft.join(stream, end)
        return end

    def _joined(self, draft: Draft, fast: int, stream: int) -> int:
        total = draft.node("fast sum", "sum", "", None, fast)
        draft.join(stream, total, "gate")
        return total
