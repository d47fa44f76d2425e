"""Layers that take the end of the sequence through themselves again, in rounds.

Legend: B batch, T tokens, M tokens of the block, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import LOOP
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from .base import Macro, Part, Runs, kept
from .looped import stream_parts
from .running import initial_state

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["LatentReasoning", "ReasoningLayers"]


class ReasoningLayers(nn.Module):
    """The layers over the sequence, then over its last outputs as further tokens, with a vector of the round added."""

    def __init__(self, layers: nn.Module, width: int, block: int, rounds: int):
        super().__init__()
        self.body: Any = layers
        self.block, self.rounds = block, rounds
        self.round = nn.Parameter(torch.empty(rounds, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, min(M, T), D], the block of the last round."""
        return self.every(x)[-1]

    def every(self, x: Tensor) -> list[Tensor]:
        """The block before the first round, and of every round."""
        x_BTD = x.flatten(1, -2)
        y_BTD, state = self.body.step(x_BTD, initial_state(self.body, len(x_BTD), x_BTD.dtype, x_BTD.device))
        blocks = [y_BTD[:, -self.block:]]
        for r in range(self.rounds):
            y_BMD, state = self.body.step(blocks[-1] + self.round[r], state)
            blocks.append(y_BMD)
        return blocks


@dataclass(frozen=True)
class LatentReasoning(Macro):
    """Block-wise latent reasoning of OnePiece (Dai et al., 2025): the end of the sequence goes through the layers again.

    The last `block` outputs of the layers, plus a learned vector of the round, are `rounds` times appended as further tokens,
    and go through the same layers, which keep keys, values or states of the sequence and of all rounds before. What leaves is
    the block of the last round alone.

    layers: causal ones that decode with a state, so that inside a block a token sees those before it; the authors' look both
    ways inside it. `bp.reasoning_logits` are the logits of every round, which the paper supervises by tasks of growing
    difficulty. The block is the end of the whole sequence: not causal, and does not stream.
    """

    layers: Any
    block: Any = 1
    rounds: Any = 2
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_latent_reasoning.py"
    source: ClassVar[Source] = Source("OnePiece: Bringing Context Engineering and Reasoning to Industrial Cascade Ranking "
                                      "System", 2025, options=("S410",))

    def check(self, width: int, where: str) -> None:
        require_whole("block", self.block, where)
        require_whole("rounds", self.rounds, where)

    def axes(self, width: int) -> dict[str, Param]:
        return {"round": param(axis("iteration", self.rounds), axis("width", width), init=Init("normal", gain=0.02))}

    def size(self, length: Length) -> int:
        """Tokens of the block: a shorter sequence is all of it."""
        return min(self.block, tokens_of(length))                                     # type: ignore[no-any-return]

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        return width, self.size(length)

    def parts(self, width: int, length: Length) -> list[Part]:
        """A prefill and the rounds cost what one causal pass over all of it does."""
        tokens = tokens_of(length)
        whole = ((tokens + self.rounds * self.size(length), 1.0),)
        return [part._replace(runs=Runs(whole, anew=whole))
                for part in stream_parts(self.layers, "layers", width, tokens, "body.layers")]

    def build(self, width: int) -> nn.Module:
        items = [entry.item for entry in kept(self.layers)]
        for item in items:
            if not (item.causal and item.streaming):
                raise ValueError("rounds continue from a state, so layers of LatentReasoning are causal and decode with one: "
                                 f"got {type(item).__name__} that is not; use layers such as Block(mixer=Attention())")
        return ReasoningLayers(Layers(built_layers(items, width)), width, self.block, self.rounds)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "rounds", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.body.layers", width)
        end = draft.node("last block", "rounds", "", None, end)
        draft.join(begin, end, LOOP)
        return end
