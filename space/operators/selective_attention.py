"""Attention layers of which some choose the tokens that others read.

Legend: B batch, T new tokens, S tokens so far, H heads, P head_dim, K tokens chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param
from ..operator import Operator, Source
from .attention import attend
from .checks import require_whole
from .gathered import ROTARY, ROWS, CachedAttention, check_even, rotary_projections
from .windows import check_heads, head_size

__all__ = ["AllTokens", "ChoosingTokens", "ChosenTokens", "SelectiveAttention"]

READS = ("all", "choose", "chosen")


class AllTokens(CachedAttention):
    """Queries read all tokens up to themselves."""

    def attend(self, q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q_BHTP, k_BHSP, v_BHSP))
        return attend(q, k, v, None).transpose(1, 2)


class ChoosingTokens(CachedAttention):
    """Queries read all tokens, and hand on as `chosen` the places of the `tokens` with the highest scores, for each head; -1
    where there are not so many."""

    shares = True

    def __init__(self, width: int, heads: int, head_dim: int, rotary: bool, rope_base: float, tokens: int, rows: int = 256):
        super().__init__(width, heads, head_dim, rotary, rope_base)
        self.tokens, self.rows = tokens, rows

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None,                    # type: ignore[override]
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, state = self.extended(x_BTD, state)
        outputs, chosen = [], []
        for logits_BHTS in self.scores(q, k):
            best = logits_BHTS.topk(min(self.tokens, k.shape[2]), dim=-1)
            chosen.append(best.indices.masked_fill(best.values == -torch.inf, -1))
            outputs.append(logits_BHTS.softmax(-1) @ v)
        if shared is not None:
            shared["chosen"] = torch.cat(chosen, dim=2)
        return self.out(torch.cat(outputs, dim=2).transpose(1, 2).flatten(2)), state

    def scores(self, q_BHTP: Tensor, k_BHSP: Tensor) -> list[Tensor]:
        """Scores of some queries at a time with all keys, [B, H, rows, S], minus infinity for tokens to come."""
        place_S = torch.arange(k_BHSP.shape[2], device=q_BHTP.device)
        own_T1 = place_S[k_BHSP.shape[2] - q_BHTP.shape[2]:, None]
        q_BHTP = q_BHTP / math.sqrt(self.head_dim)
        return [(q @ k_BHSP.transpose(2, 3)).masked_fill(place_S > own_1, -torch.inf)
                for q, own_1 in zip(torch.split(q_BHTP, self.rows, 2), torch.split(own_T1, self.rows), strict=True)]


class ChosenTokens(CachedAttention):
    """Queries read the tokens that a layer before chose for them, head by head."""

    shares = True

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None,                    # type: ignore[override]
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, state = self.extended(x_BTD, state)
        index_BHTK = chosen_before(shared, self.heads)
        batch_B111 = torch.arange(len(q), device=q.device)[:, None, None, None]
        head_H11 = torch.arange(self.heads, device=q.device)[:, None, None]
        k_BHTKP, v_BHTKP = k[batch_B111, head_H11, index_BHTK], v[batch_B111, head_H11, index_BHTK]
        logits_BHTK = (k_BHTKP @ q[..., None])[..., 0] / math.sqrt(self.head_dim)
        weights_BHTK = logits_BHTK.masked_fill(index_BHTK < 0, -torch.inf).softmax(-1)
        y_BHTP = (weights_BHTK[..., None, :] @ v_BHTKP)[..., 0, :]
        return self.out(y_BHTP.transpose(1, 2).flatten(2)), state


def chosen_before(shared: dict[str, Any] | None, heads: int) -> Tensor:
    """The places that the last layer to choose has handed on."""
    if shared is None or "chosen" not in shared:
        raise ValueError("a layer that reads chosen tokens needs one before it that chooses them: got none; use "
                         "Stack(layers, residual=PersistentSelection())")
    index_BHTK: Tensor = shared["chosen"]
    if index_BHTK.shape[1] != heads:
        raise ValueError(f"tokens are chosen head by head: got {heads} heads after {index_BHTK.shape[1]}; give these layers "
                         "the same number, or one tied(...) choice")
    return index_BHTK


@dataclass(frozen=True)
class SelectiveAttention(Operator):
    """Softmax attention that can read what another layer chose: the layers of TidalDecode (Yang et al., 2024).

    tokens that each query and head of a choosing layer hands on. reads: "all"; "choose", all, and hand on; "chosen", what was
    handed on. `Stack(layers, residual=PersistentSelection(...))` sets it. As long as `tokens` is at least the length, all
    three are full attention: so train, then `dataclasses.replace` the number, weights staying as they are. The paper reads
    everything in a prompt and chooses for new tokens alone; here a token reads the same whether it comes alone or in a
    prompt. head_dim defaults to width / heads.
    """

    heads: Any = 4
    tokens: Any = 256
    reads: Any = "all"
    head_dim: Any = None
    rotary: Any = True
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
                                      2024, options=("S341",))

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        return bool(self.reads != "all")

    @property
    def reads_shared(self) -> bool:
        """Whether it needs what earlier layers hand on."""
        return bool(self.reads == "chosen")

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return ROTARY if self.rotary else {}

    @property
    def couples(self) -> frozenset[str]:                                              # type: ignore[override]
        """Heads, whose choices other layers read."""
        return frozenset() if self.reads == "all" else frozenset({"heads"})

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("tokens", self.tokens, where)
        check_even(head_size(self, width), where)
        if self.reads not in READS:
            raise ValueError(f"{unknown('reads', self.reads, READS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        return rotary_projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        sizes = (width, self.heads, head_size(self, width), bool(self.rotary), self.rope_base)
        if self.reads == "chosen":
            return ChosenTokens(*sizes)
        return ChoosingTokens(*sizes, self.tokens, ROWS) if self.reads == "choose" else AllTokens(*sizes)

    def macs(self, width: int, length: int) -> float:
        """Projections, and scores and values as executed: a layer that chooses scores tokens to come as well."""
        pairs = {"all": length * (length + 1) // 2, "choose": length * length, "chosen": length * min(self.tokens, length)}
        return float(length * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * pairs[self.reads])

    def decode_macs(self, width: int, length: int) -> float:
        seen = min(self.tokens, length + 1) if self.reads == "chosen" else length + 1
        return float(self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * seen)

    def state_numel(self, width: int, length: int) -> int:
        return int(2 * length * self.heads * head_size(self, width))
