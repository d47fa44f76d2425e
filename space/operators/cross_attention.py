"""Attention from a stream to the output of an encoder.

Legend: B batch, T tokens of the stream, S tokens of the memory, D width, H query heads, G key/value heads, P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole

__all__ = ["CrossAttention", "MemoryAttention", "check_memory"]

KEPT = ("source", "condition", "kv", "first_value", "first_seen", "layers", "chosen")      # other things that layers share


class MemoryAttention(nn.Module):
    """Queries from the stream; keys and values from `shared[memory]`, [B, S, D], the output of the encoder, or a grid.

    All tokens see the whole memory. While decoding, its keys and values are computed once and kept in the state.
    """

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, memory: str = "memory"):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.memory = heads, kv_heads, head_dim, memory
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty}

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next T tokens. Reads `shared[memory]` until a state holds its keys and values."""
        if state is None or state["key"].shape[1] == 0:
            if shared is None or self.memory not in shared:
                raise ValueError(f"cross-attention reads what an encoder hands on: got no {self.memory}; "
                                 "put it into EncoderDecoder(encoder, decoder=...)")
            memory_BSD = shared[self.memory].flatten(1, -2)
            state = {"key": self.key(memory_BSD).unflatten(-1, (self.kv_heads, self.head_dim)),
                     "value": self.value(memory_BSD).unflatten(-1, (self.kv_heads, self.head_dim))}
        q_BHTP = self.query(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        y_BHTP = F.scaled_dot_product_attention(q_BHTP, state["key"].transpose(1, 2), state["value"].transpose(1, 2),
                                                enable_gqa=self.heads != self.kv_heads)
        return self.out(y_BHTP.transpose(1, 2).flatten(2)), state


@dataclass(frozen=True)
class CrossAttention(Operator):
    """Attention Is All You Need (Vaswani et al., 2017): the decoder's attention to the encoder's output, with grouped
    key/value heads (Ainslie et al., 2023) and no positions.

    Stands in the decoder of an encoder-decoder, whose module hands in the memory. head_dim defaults to width / heads.
    memory: the name of the encoder's output, where there are several encoders: as of `EncoderDecoder`. Costs take the memory
    to be as long as the stream.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    memory: Any = "memory"
    reads_shared: ClassVar[bool] = True
    cross: ClassVar[bool] = True
    patterns: ClassVar[tuple[str, ...]] = ("noncausal cross",)
    source: ClassVar[Source] = Source("Attention Is All You Need", 2017)

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(kv_heads, queries per key, head_dim) with defaults filled in."""
        kv_heads = self.kv_heads or self.heads
        return kv_heads, self.heads // kv_heads, self.head_dim or width // self.heads

    def check(self, width: int, where: str) -> None:
        check_memory(self.memory, where)
        require_whole("heads", self.heads, where)
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        if self.kv_heads is not None:
            require_whole("kv_heads", self.kv_heads, where)
            require_divisor("kv_heads", self.kv_heads, "heads", self.heads, where)

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, group, head_dim = self.sizes(width)
        d, g, p = axis("width", width), axis("kv_heads", kv_heads), axis("head_dim", head_dim)
        queries = g * axis("group", group) * p
        return {"query.weight": param(queries, d), "key.weight": param(g * p, d), "value.weight": param(g * p, d),
                "out.weight": param(d, queries)}

    def build(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self.sizes(width)
        return MemoryAttention(width, self.heads, kv_heads, head_dim, self.memory)

    def macs(self, width: int, length: int) -> float:
        """Projections of the stream and of a memory as long, plus scores and values over all pairs."""
        return float(self.matrix_numel(width) * length + 2 * self.heads * self.sizes(width)[2] * length * length)

    def decode_macs(self, width: int, length: int) -> float:
        """Query and output of one token, and its scores and values over a memory of `length`, kept from before."""
        inner = self.heads * self.sizes(width)[2]
        return float(2 * width * inner + 2 * inner * length)

    def state_numel(self, width: int, length: int) -> int:
        """Keys and values of a memory as long as the stream."""
        kv_heads, _, head_dim = self.sizes(width)
        return 2 * length * kv_heads * head_dim


def check_memory(name: Any, where: str) -> None:
    """Raise ValueError unless it can name an encoder's output."""
    if not isinstance(name, str) or not name.isidentifier() or name in KEPT:
        raise ValueError(f"memory is a name, none of {', '.join(KEPT)}, at {where}: got {name!r}; use 'memory'")
