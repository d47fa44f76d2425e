"""Attention within segments, over what a memory recalls for them, whose outputs the memory then learns.

Legend: B batch, T tokens, L tokens of a segment up to now, D width, H heads, P head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from ..operators.checks import require_divisor, require_whole
from ..operators.neural_memory import Atlas, NeuralMemory
from ..operators.prefix_attention import PersistentAttention, prefix_axes, prefix_pairs
from ..operators.rmsnorm import RootMeanSquareNorm
from .base import Macro, Part, Runs

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["BesideMemory", "ContextMemory", "MemoryAsContext"]


class BesideMemory(Macro, abstract=True):
    """What attention that a memory gates declares, whatever it attends to."""

    memory: Any
    persistent: Any
    heads: Any
    head_dim: Any
    rope_base: float
    kind: ClassVar[str] = "mixer"
    holds: ClassVar[tuple[str, ...]] = ("memory",)
    spatial: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"}
    proof: ClassVar[str] = "tests/space/test_titans.py"
    source: ClassVar[Source] = Source("Titans: Learning to Memorize at Test Time", 2025, systems=("S394",))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("persistent", self.persistent, where, low=0, instead="use 0 for none")
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)
        if self.size(width) % 2:
            raise ValueError(f"head_dim must be even for rotary positions at {where}: got {self.size(width)}; set head_dim")

    def size(self, width: int) -> int:
        """Numbers of a query of one head."""
        return int(self.head_dim or width // self.heads)

    def inner(self, width: int) -> int:
        """Numbers of a query of all heads."""
        return int(self.heads * self.size(width))

    def axes(self, width: int) -> dict[str, Param]:
        gain = param(axis("width", width), share="own", init="ones")
        attention = prefix_axes(width, self.heads, self.size(width), self.persistent)
        return {**{f"attention.{name}": declared for name, declared in attention.items()}, "norm.weight": gain,
                "memory_norm.weight": gain}

    def attention(self, width: int) -> PersistentAttention:
        """The module of the attention."""
        return PersistentAttention(width, self.heads, self.size(width), self.rope_base, self.persistent)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        begin = draft.node(self.label(), "memory", place, self, stream)
        gate = draft.node("memory gate", "merge", "", None, draft.part(self.parts(width, 1)[0], begin, place, "mixer"))
        draft.join(begin, gate)
        return gate


class ContextMemory(nn.Module):
    """Segment by segment: h = M(q) of the memory before it, y = attention over [persistent, h, segment], and the output
    norm(y) * sigmoid(norm(m)), m being what the memory gives while it learns y.

    The state holds the memory that the segment began with, which it reads, beside the one that learns.
    """

    def __init__(self, memory: nn.Module, attention: nn.Module, width: int, segment: int, persistent: int):
        super().__init__()
        self.memory: Any = memory
        self.attention: Any = attention
        self.segment, self.num_prefix = segment, persistent
        self.norm = RootMeanSquareNorm(width)
        self.memory_norm = RootMeanSquareNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        key, value = self.attention.prefix(x_BTD)
        none = self.attention.empty(len(x_BTD), x_BTD.dtype, x_BTD.device)
        return self.step(x_BTD, {"prefix_key": key, "prefix_value": value, "memory": None, "past": None,
                                 "read": self.memory.beginning(x_BTD), **self.fresh(none)})[0]

    def fresh(self, none_B0HP: Tensor) -> dict[str, Tensor]:
        """Keys and values at the beginning of a segment: of what is recalled, and of tokens."""
        return {name: none_B0HP for name in ("recalled_key", "recalled_value", "key", "value")}

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        like = torch.zeros(batch, 0, self.norm.weight.shape[0], dtype=dtype, device=device)
        key, value = self.attention.prefix(like)
        past = None
        if self.memory.taps is not None:
            inner = self.memory.heads * self.memory.key_dim
            past = torch.zeros(batch, self.memory.taps.shape[1] - 1, inner, dtype=dtype, device=device)
        return {"prefix_key": key.clone(), "prefix_value": value.clone(), "past": past,
                "memory": self.memory.init_state(batch, dtype=dtype, device=device),
                "read": [layer.clone() for layer in self.memory.beginning(like)],
                **self.fresh(self.attention.empty(batch, dtype, device))}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, up to the end of a segment at a time."""
        state, found = dict(state), []
        while x_BTD.shape[1]:
            room = self.segment - state["key"].shape[1]
            part_BLD, x_BTD = x_BTD[:, :room], x_BTD[:, room:]
            found.append(self.within(part_BLD, state))
            if state["key"].shape[1] == self.segment:
                state |= self.fresh(state["key"][:, :0])
                state["read"] = [state["memory"][f"memory_{n}"] for n in range(len(state["read"]))]
        return torch.cat(found, 1), state

    def within(self, x_BLD: Tensor, state: dict[str, Any]) -> Tensor:
        """Tokens of one segment; writes what they leave into `state`."""
        seen, first = state["key"].shape[1], self.num_prefix
        recalled_BLD, state["past"] = self.memory.recall(x_BLD, state["read"], state["past"])
        new = (*self.attention.keys_values(recalled_BLD, first + seen),
               *self.attention.keys_values(x_BLD, first + self.segment + seen))
        for name, rows in zip(("recalled_key", "recalled_value", "key", "value"), new, strict=True):
            state[name] = torch.cat([state[name], rows], 1)
        y_BLD = self.attention(x_BLD, first + self.segment + seen, (state["prefix_key"], state["prefix_value"]),
                               [(state["recalled_key"], state["recalled_value"]), (state["key"], state["value"])])
        m_BLD, state["memory"] = self.memory.step(y_BLD, state["memory"])
        return self.norm(y_BLD) * torch.sigmoid(self.memory_norm(m_BLD))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MemoryAsContext(BesideMemory):
    """Titans with memory as a context (MAC; Behrouz, Zhong and Mirrokni, 2025), a mixer.

    A segment of `chunks` chunks of the memory asks it as it was before the segment; `persistent` learned tokens, the
    answers and the segment are what attention within the segment sees; its outputs are what the memory learns, and what
    the memory then gives gates them. memory: a `NeuralMemory` or an `Atlas`. heads, head_dim: of the attention, with
    rotary positions along [persistent, answers, segment].

    Read so that no token sees a later one: a token attends to the answers to the tokens up to its own, and its output is
    gated by the memory as it is after that token (in chunks, as everywhere), not after the whole segment. Queries are the
    memory's own. The gate, which the paper leaves open, is RMS norms with learned gains of both, and a sigmoid of the
    memory's.
    """

    memory: Any
    chunks: Any = 4
    persistent: Any = 4
    heads: Any = 4
    head_dim: Any = None
    rope_base: float = 10000.0

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_whole("chunks", self.chunks, where)

    def check_stream(self, field: str, items: list[Any], where: str) -> None:
        for memory in items:
            if isinstance(memory, Operator) and not isinstance(memory, (NeuralMemory, Atlas)):
                raise ValueError(f"memory is a NeuralMemory or an Atlas at {where}.{field}: got {type(memory).__name__}, "
                                 "which cannot be asked without learning; use MemoryAsGate")

    @property
    def segment(self) -> int:
        """Tokens of a segment."""
        return int(self.chunks * self.memory.chunk)

    def token_macs(self, width: int) -> float:
        """Of every token: projections of it and of its answer, and the answer."""
        key_dim, value_dim, _ = self.memory.sizes(width)
        layers = sum(i * o for _, i, o in self.memory.layers(width))
        answer = width * (key_dim + 2 * value_dim) + key_dim * (self.memory.conv or 0) + layers
        return float(6 * width * self.inner(width) + self.memory.heads * answer)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        tokens, inner = tokens_of(length), self.inner(width)
        full, rest = divmod(tokens, self.segment)
        near = full * prefix_pairs(self.segment, None) + prefix_pairs(rest, None)
        return (tokens * self.token_macs(width) + 2 * self.persistent * width * inner  # type: ignore[no-any-return]
                + 2 * inner * (tokens * self.persistent + 2 * near))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        seen = tokens_of(length) % self.segment + 1
        return self.token_macs(width) + 2 * self.inner(width) * (self.persistent + 2 * seen)  # type: ignore[no-any-return]

    def state_numel(self, width: int, length: Length) -> int:                        # type: ignore[override]
        layers = sum(i * o for _, i, o in self.memory.layers(width))
        past = max((self.memory.conv or 1) - 1, 0) * self.memory.sizes(width)[0]
        return int(self.inner(width) * (2 * self.persistent + 4 * (tokens_of(length) % self.segment))
                   + self.memory.heads * (layers + past))

    def parts(self, width: int, length: Length) -> list[Part]:
        tokens = tokens_of(length)
        part = Part("memory", self.memory, ("memory",), width, tokens)
        if self.memory.as_delta_rule() is None:
            return [part]
        full, rest = divmod(tokens, self.segment)            # the kernel's work depends on how many tokens it gets at once
        whole = tuple((size, count) for size, count in ((self.segment, full), (rest, 1)) if size and count)
        return [part._replace(runs=Runs(whole, ((tokens, 1),), (), tokens))]

    def build(self, width: int) -> nn.Module:
        return ContextMemory(self.memory.build(width), self.attention(width), width, self.segment, self.persistent)
