"""Attention among tokens that random rotations put into one bucket.

Legend: B batch, T new tokens, S tokens so far, D width, H heads, P head_dim, R rounds, U buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .bucketed import newest_members, sorted_members, window_pairs
from .checks import require_whole
from .nprf import normal_numbers
from .windows import check_heads, head_size

__all__ = ["HashedBuckets", "LSHAttention"]


class HashedBuckets(nn.Module):
    """One vector per head is a token's query and, at length 1, its key. Its bucket in each round is the largest of
    `[x R; -x R]` for random directions R, which are computed in every pass and always the same.

    The cache keeps vectors, values and buckets.
    """

    def __init__(self, width: int, heads: int, head_dim: int, rounds: int, buckets: int, members: int):
        super().__init__()
        self.heads, self.head_dim, self.rounds, self.buckets, self.members = heads, head_dim, rounds, buckets, members
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, self.heads, 0, self.head_dim, dtype=dtype, device=device)
        bucket = torch.zeros(batch, self.heads, self.rounds, 0, dtype=torch.int64, device=device)
        return {"query": empty, "value": empty, "bucket": bucket}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next T tokens; one alone looks its buckets up, several are sorted with all before them."""
        q, v = (project(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
                for project in (self.query, self.value))
        bucket, new = self.hashed(q), x_BTD.shape[1]
        if state is not None:
            q, v = torch.cat([state["query"], q], dim=2), torch.cat([state["value"], v], dim=2)
            bucket = torch.cat([state["bucket"], bucket], dim=3)
        k = F.normalize(q, dim=-1)
        y = (newest_members(q[:, :, -1:], k, v, bucket, self.members, True) if new == 1 else
             sorted_members(q, k, v, bucket, self.members, True)[:, :, -new:])
        return self.out(y.transpose(1, 2).flatten(2)), {"query": q, "value": v, "bucket": bucket}

    def hashed(self, x_BHTP: Tensor) -> Tensor:
        """The bucket of every token in every round, [B, H, R, T]."""
        half, dtype = self.buckets // 2, torch.promote_types(x_BHTP.dtype, torch.float32)
        if half == 0:
            return torch.zeros(*x_BHTP.shape[:2], self.rounds, x_BHTP.shape[2], dtype=torch.int64, device=x_BHTP.device)
        weight_HFP = normal_numbers(self.heads, self.rounds * half, self.head_dim, x_BHTP.device, dtype)
        turned_BHTE = x_BHTP.detach().to(dtype) @ weight_HFP.transpose(1, 2)
        turned_BHTRF = torch.unflatten(turned_BHTE, -1, (self.rounds, half))
        return torch.cat([turned_BHTRF, -turned_BHTRF], dim=-1).argmax(-1).transpose(2, 3)


@dataclass(frozen=True)
class LSHAttention(Operator):
    """Reformer: The Efficient Transformer (Kitaev et al., 2020): attention with shared queries and keys among tokens that
    locality-sensitive hashing puts into one bucket.

    rounds of hashing, whose finds are joined, each token counted once. buckets of a round, even, or 1 for attention to the
    newest tokens whatever they are. members: how many of its bucket's newest tokens a token reads, itself included, which it
    reads only where it is alone; the authors' chunk and the one before hold as many. head_dim defaults to width / heads.
    With the authors' residual, `Stack(..., residual=Reversible())`, this is a Reformer.

    The authors cut the sorted tokens into chunks wherever they fall, so that tokens to come move what a token reads; a
    window behind each does not. What it reads stands elsewhere in a sum, whence outputs differ in their last bits.
    """

    heads: Any = 4
    rounds: Any = 4
    buckets: Any = 64
    members: Any = 128
    head_dim: Any = None
    causal_to_the_bit: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"heads": "a head has its own random directions",
                                          "key_dim": "an entry is a coordinate of random directions"}
    source: ClassVar[Source] = Source("Reformer: The Efficient Transformer", 2020, systems=("S206",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        for name in ("rounds", "buckets", "members"):
            require_whole(name, getattr(self, name), where)
        if self.buckets % 2 and self.buckets != 1:
            raise ValueError(f"buckets must be even, or 1, at {where}: got {self.buckets}; use {self.buckets + 1}")

    def axes(self, width: int) -> dict[str, Param]:
        d, h, size = axis("width", width), axis("heads", self.heads), head_size(self, width)
        values = h * axis("value_dim", size)
        return {"query.weight": param(h * axis("key_dim", size), d), "value.weight": param(values, d),
                "out.weight": param(d, values)}

    def build(self, width: int) -> nn.Module:
        return HashedBuckets(width, self.heads, head_size(self, width), self.rounds, self.buckets, self.members)

    def macs(self, width: int, length: int) -> float:
        """Projections, hashes, and scores and values of what is read in every round."""
        inner = self.heads * head_size(self, width)
        reads = length * (self.buckets // 2) + 2 * window_pairs(length, self.members)
        return float(length * self.matrix_numel(width) + inner * self.rounds * reads)

    def decode_macs(self, width: int, length: int) -> float:
        return self.macs(width, length + 1) - self.macs(width, length)

    def state_numel(self, width: int, length: int) -> int:
        """A vector and a value for every token and head, and its bucket in every round."""
        return int(length * self.heads * (2 * head_size(self, width) + self.rounds))
