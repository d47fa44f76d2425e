"""Layers over one segment of the sequence at a time, with a memory handed from segment to segment.

Legend: B batch, T tokens, L tokens of a segment, S tokens before it, M memories, D width.
"""

from __future__ import annotations

from collections import Counter
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

__all__ = ["RecallingSegments", "SegmentRecurrence", "Segments"]

MEMORIES, SUMMARIES = (None, "mean", "recall"), ("own", "previous")


class Segments(nn.Module):
    """The layers over every segment behind the last tokens of the one before and, with `mean`, behind a linear map of the
    mean of what they gave there; before the first stands a learned vector in its place.

    Decoding, the layers begin anew at every segment with what stands before it.
    """

    def __init__(self, layers: nn.Module, width: int, segment: int, sensory: int, mean: bool = False):
        super().__init__()
        self.body: Any = layers
        self.width, self.segment, self.sensory = width, segment, sensory
        self.first = nn.Parameter(torch.empty(width)) if mean else None
        self.pool = nn.Linear(width, width, bias=False) if mean else None

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        parts, before_BSD = torch.split(x_BTD, self.segment, 1), self.beginning(x_BTD)
        found: list[Tensor] = []
        for n, part_BLD in enumerate(parts):
            if n:
                before_BSD = self.between(parts[n - 1], found[-1].mean(1, keepdim=True))
            found.append(self.body(torch.cat([before_BSD, part_BLD], 1))[:, before_BSD.shape[1]:])
        return torch.cat(found, 1).view(x.shape)

    def beginning(self, x_BTD: Tensor) -> Tensor:
        """What stands before the first segment."""
        return x_BTD[:, :0] if self.first is None else self.first.expand(len(x_BTD), 1, -1)

    def between(self, past_BLD: Tensor, mean_B1D: Tensor) -> Tensor:
        """What stands before the segment after one with these tokens."""
        last_BSD = past_BLD[:, self.segment - self.sensory:]
        return last_BSD if self.pool is None else torch.cat([self.pool(mean_B1D), last_BSD], 1)

    def behind(self, before_BSD: Tensor) -> Any:
        """The state of the layers at the beginning of a segment."""
        state = initial_state(self.body, len(before_BSD), before_BSD.dtype, before_BSD.device)
        return self.body.step(before_BSD, state)[1] if before_BSD.shape[1] else state

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        none_B0D = torch.zeros(batch, 0, self.width, dtype=dtype, device=device)
        found = {"layers": self.behind(self.beginning(none_B0D)), "tokens": none_B0D}
        return found if self.pool is None else {**found, "total": none_B0D.sum(1, keepdim=True)}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, up to the end of a segment at a time."""
        found, state = [], dict(state)
        while x_BTD.shape[1]:
            room = self.segment - state["tokens"].shape[1]
            part_BLD, x_BTD = x_BTD[:, :room], x_BTD[:, room:]
            y_BLD, state["layers"] = self.body.step(part_BLD, state["layers"])
            state["tokens"] = torch.cat([state["tokens"], part_BLD], 1)
            found.append(y_BLD)
            if self.pool is not None:
                state["total"] = state["total"] + y_BLD.sum(1, keepdim=True)
            if state["tokens"].shape[1] == self.segment:
                state = self.passed(state)
        return torch.cat(found, 1), state

    def passed(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state at the end of a segment."""
        if self.pool is None:
            return {"layers": self.behind(self.between(state["tokens"], state["tokens"])), "tokens": state["tokens"][:, :0]}
        before_BSD = self.between(state["tokens"], state["total"] / self.segment)
        return {"layers": self.behind(before_BSD), "tokens": state["tokens"][:, :0],
                "total": torch.zeros_like(state["total"])}


class RecallingSegments(Segments):
    """The layers over every segment between two copies of a recalled memory; their output at the second is remembered.

    What is recalled is a mean of the last `cache` memories, weighed by the softmax of their keys times the query of a
    summary: the layers' output at the second of two copies of a learned vector around half a segment.
    """

    def __init__(self, layers: nn.Module, width: int, segment: int, sensory: int, cache: int, key_dim: int, own: bool):
        super().__init__(layers, width, segment, sensory)
        self.cache, self.own, self.num_read = cache, own, max(1, segment // 2)
        self.first = nn.Parameter(torch.empty(width))
        self.prompt = nn.Parameter(torch.empty(width))
        self.query = nn.Linear(width, key_dim, bias=False)
        self.key = nn.Linear(width, key_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        recalled_B1D = before_BSD = self.beginning(x_BTD)
        parts, found, memories_BMD = torch.split(x_BTD, self.segment, 1), [], x_BTD[:, :0]
        for n, part_BLD in enumerate(parts):
            if n:
                half_BLD = part_BLD[:, :self.num_read] if self.own else parts[n - 1][:, self.segment - self.num_read:]
                recalled_B1D = self.recalled(half_BLD, memories_BMD)
                before_BSD = torch.cat([recalled_B1D, parts[n - 1][:, self.segment - self.sensory:]], 1)
            if n == len(parts) - 1:
                found.append(self.body(torch.cat([before_BSD, part_BLD], 1))[:, before_BSD.shape[1]:])
            else:
                y_BSD = self.body(torch.cat([before_BSD, part_BLD, recalled_B1D], 1))
                found.append(y_BSD[:, before_BSD.shape[1]:-1])
                memories_BMD = torch.cat([memories_BMD, y_BSD[:, -1:]], 1)[:, -self.cache:]
        return torch.cat(found, 1).view(x.shape)

    def recalled(self, half_BLD: Tensor, memories_BMD: Tensor) -> Tensor:
        """The memory for a segment, by half a segment's tokens. [B, 1, D]"""
        prompt_B1D = self.prompt.expand(len(half_BLD), 1, -1)
        summary_B1D = self.body(torch.cat([prompt_B1D, half_BLD, prompt_B1D], 1))[:, -1:]
        query_B1K, keys_BMK = self.query(summary_B1D), self.key(memories_BMD)
        weight_B1M = torch.softmax(query_B1K @ keys_BMK.mT / keys_BMK.shape[-1] ** 0.5, -1)
        return weight_B1M @ memories_BMD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        none_B0D = torch.zeros(batch, 0, self.width, dtype=dtype, device=device)
        first_B1D = self.beginning(none_B0D)
        return {"layers": self.behind(first_B1D), "tokens": none_B0D, "recalled": first_B1D, "memories": none_B0D}

    def passed(self, state: dict[str, Any]) -> dict[str, Any]:
        tokens_BLD = state["tokens"]
        memory_B1D, _ = self.body.step(state["recalled"], state["layers"])
        memories_BMD = torch.cat([state["memories"], memory_B1D], 1)[:, -self.cache:]
        recalled_B1D = self.recalled(tokens_BLD[:, self.segment - self.num_read:], memories_BMD)
        before_BSD = torch.cat([recalled_B1D, tokens_BLD[:, self.segment - self.sensory:]], 1)
        return {"layers": self.behind(before_BSD), "tokens": tokens_BLD[:, :0], "recalled": recalled_B1D,
                "memories": memories_BMD}


@dataclass(frozen=True)
class SegmentRecurrence(Macro):
    """Layers that see one segment of `segment` tokens, and what a memory tells of those before.

    memory: "recall", that of the Hierarchical Memory Transformer (He et al., 2024): before and after a segment stands a
    vector recalled from the last `cache` memories by cross-attention, and the layers' output at the second is the segment's
    memory; before the first segment that vector is learned. summary: by what it is recalled, half a segment behind and
    before a learned vector through the same layers: the first half of the segment "own", as in the paper, which looks ahead
    to it from the segment's first tokens, so that it is not causal and does not stream; or the last half of the "previous"
    segment. key_dim: of the cross-attention; None for the width. "mean": before a segment stands a linear map of the mean
    of what the layers gave in the one before (a recurrence between the windows of a decoder). None: segments do not know of
    each other.

    sensory: how many of the last tokens of the segment before stand right before a segment as they entered the macro.
    layers: keep width and length, and get nothing of what an outer stream shares. Gradients go back through all segments.
    """

    layers: Any
    segment: Any = 64
    sensory: Any = 0
    memory: Any = "recall"
    cache: Any = 32
    summary: Any = "previous"
    key_dim: Any = None
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    proof: ClassVar[str] = "tests/space/test_segment_recurrence.py"
    source: ClassVar[Source] = Source("HMT: Hierarchical Memory Transformer for Long Context Language Processing", 2024,
                                      systems=("S015",), options=("S276",))

    def check(self, width: int, where: str) -> None:
        require_whole("segment", self.segment, where)
        require_whole("cache", self.cache, where)
        require_whole("sensory", self.sensory, where, low=0, instead="use 0 for none")
        if self.sensory > self.segment:
            raise ValueError(f"sensory tokens are of one segment at {where}: got {self.sensory} of {self.segment}")
        for name, value, allowed in (("memory", self.memory, MEMORIES), ("summary", self.summary, SUMMARIES)):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))} at {where}: got {value!r}")
        if self.key_dim is not None:
            require_whole("key_dim", self.key_dim, where)

    @property
    def looks_ahead(self) -> bool:
        """Whether a segment is summed up before its first token is read."""
        return bool(self.memory == "recall" and self.summary == "own")

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return not self.looks_ahead and super().causal

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return self.causal and super().streaming

    def axes(self, width: int) -> dict[str, Param]:
        d, start = axis("width", width), Init("normal", gain=0.02)
        if self.memory == "mean":
            return {"first": param(d, init=start), "pool.weight": param(d, d)}
        if self.memory is None:
            return {}
        k = axis("memory_key", self.key_dim or width)
        return {"first": param(d, init=start), "prompt": param(d, init=start), "query.weight": param(k, d),
                "key.weight": param(k, d)}

    def recall_macs(self, width: int, memories: int) -> int:
        """Of what is made between two segments."""
        k = self.key_dim or width
        return {"mean": width * width, "recall": width * k * (1 + memories) + memories * (k + width)}.get(self.memory, 0)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        segments = -(-tokens_of(length) // self.segment)
        return float(sum(self.recall_macs(width, min(n, self.cache)) for n in range(1, segments)))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        """The mean over the tokens of a segment."""
        memories = min(tokens_of(length) // self.segment + 1, self.cache)
        return self.recall_macs(width, memories) / self.segment                       # type: ignore[no-any-return]

    def state_numel(self, width: int, length: Length) -> int:                        # type: ignore[override]
        passed, held = divmod(tokens_of(length), self.segment)
        return int(width * (held + {"mean": 1, "recall": 1 + min(passed, self.cache)}.get(self.memory, 0)))

    def runs(self, tokens: int) -> Runs:
        """Next tokens are the mean over those of a segment behind another."""
        recalls, half, each = self.memory == "recall", max(1, self.segment // 2), 1 / self.segment
        sizes = [min(self.segment, tokens - start) for start in range(0, tokens, self.segment)]
        vectors, whole = int(self.memory is not None), Counter[int]()
        for n, size in enumerate(sizes):
            before, after = vectors + self.sensory * (n > 0), recalls and n < len(sizes) - 1
            passes = [before + size + after]
            if recalls and n:
                passes.append(2 + (min(half, size) if self.summary == "own" else half))
            whole.update(passes)
        seen = range(vectors + self.sensory + self.segment + recalls)
        return Runs(tuple(whole.items()), tuple((before, each) for before in seen), ((2 + half, each),) if recalls else (),
                    vectors + self.sensory * (tokens >= self.segment) + tokens % self.segment)

    def parts(self, width: int, length: Length) -> list[Part]:
        runs = self.runs(tokens_of(length))
        return [part._replace(runs=runs)
                for part in stream_parts(self.layers, "layers", width, tokens_of(length), "body.layers")]

    def build(self, width: int) -> nn.Module:
        layers = Layers(built_layers([entry.item for entry in kept(self.layers)], width))
        if self.memory != "recall":
            return Segments(layers, width, self.segment, self.sensory, self.memory == "mean")
        return RecallingSegments(layers, width, self.segment, self.sensory, self.cache, self.key_dim or width,
                                 self.summary == "own")

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "segments", place, self, stream)
        end = draft.items([entry.item for entry in kept(self.layers)], begin, f"{place}.body.layers", width)
        end = draft.node("segments end", "segments", "", None, end)
        draft.join(begin, end, LOOP)
        return end
