"""Attention to chunks of varying length that a low-dimensional adapter chooses at their boundaries.

Legend: B batch, T new tokens, S tokens so far, H heads, P head_dim, A entries of an adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .gathered import ROTARY, CachedAttention, check_even, rotary_projections
from .selective_attention import AllTokens
from .windows import check_heads, head_size

__all__ = ["ChunkAttention", "ChunkTokens", "end_of_chunk"]


def end_of_chunk(end_BS: Tensor) -> Tensor:
    """The place of the last token of each token's chunk, [B, S]; S where the chunk has none yet."""
    places = torch.arange(end_BS.shape[1], device=end_BS.device)
    return torch.where(end_BS, places, end_BS.shape[1]).flip(1).cummin(1).values.flip(1)


class ChunkTokens(CachedAttention):
    """Queries read the tokens of their own chunk up to themselves, and of the chunks before those that the last token of the
    chunk before theirs chose.

    A token whose `ends` is positive is the last of its chunk. It asks all chunks so far, its own included, by the product of
    its `ask` with the `offer` of their last tokens, and the `chosen` best ones are read until the next chunk ends. What chose
    a chunk has the gradient of a term in the logits of its tokens.
    """

    def __init__(self, width: int, heads: int, head_dim: int, rotary: bool, rope_base: float, adapter: int, chosen: int):
        super().__init__(width, heads, head_dim, rotary, rope_base)
        self.chosen = chosen
        self.ask = nn.Linear(width, adapter, bias=False)
        self.offer = nn.Linear(width, adapter, bias=False)
        self.ends = nn.Linear(width, 1)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, self.heads, 0, self.head_dim, dtype=dtype, device=device)
        nowhere = torch.zeros(batch, 0, dtype=torch.int8, device=device)
        return {"key": empty, "value": empty, "end": nowhere, "chunks": nowhere,
                "offer": torch.zeros(batch, 0, self.offer.out_features, dtype=dtype, device=device)}

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Attend from T new tokens to the cached ones and themselves."""
        state = self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device) if state is None else state
        q, k, v, kept = self.extended(x_BTD, state)
        sure_BT = self.ends(x_BTD)[..., 0]
        end_BS = torch.cat([state["end"], (sure_BT > 0).to(torch.int8)], dim=1)
        offer_BSA = torch.cat([state["offer"], self.offer(x_BTD)], dim=1)
        score_BTS = self.chunk_scores(self.ask(x_BTD), offer_BSA, end_BS.bool())
        score_BTS = score_BTS + F.pad(sure_BT - sure_BT.detach(), (end_BS.shape[1] - sure_BT.shape[1], 0))[:, None]
        logit_BTS, chunks_BS = self.reads(score_BTS, end_BS.bool(), state["chunks"].bool())
        y_BHTP = F.scaled_dot_product_attention(q, k, v, attn_mask=logit_BTS[:, None])
        return self.out(y_BHTP.transpose(1, 2).flatten(2)), {**kept, "end": end_BS, "chunks": chunks_BS.to(torch.int8),
                                                             "offer": offer_BSA}

    def reads(self, score_BTS: Tensor, end_BS: Tensor, chunks_BS: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the logits, minus infinity for what is not read, [B, T, S]; and which of the tokens before them
        whatever comes next will read."""
        new, seen = score_BTS.shape[1:]
        place_S = torch.arange(seen, device=end_BS.device)
        best = score_BTS.topk(min(self.chosen, seen), dim=-1)
        is_there = best.values > -torch.inf
        term = torch.where(is_there, best.values - best.values.detach(), -torch.inf)
        picked_BTE = score_BTS.new_full((*score_BTS.shape[:2], seen + 1), -torch.inf).scatter(2, best.indices, term)
        choice_BTS = picked_BTE.gather(2, end_of_chunk(end_BS)[:, None].expand(-1, new, -1))
        before_BS = torch.where(F.pad(chunks_BS, (0, new)), 0, -torch.inf).to(choice_BTS.dtype)
        choice_BTS = torch.cat([before_BS[:, None], choice_BTS], dim=1)                # what was chosen before comes first
        last_BS = torch.where(end_BS, place_S, -1).cummax(1).values
        start_BT1 = F.pad(last_BS, (1, -1), value=-1)[:, seen - new:, None]
        row_BT1 = (start_BT1 - (seen - new) + 1).clamp_min(0)
        logit_BTS = choice_BTS.gather(1, row_BT1.expand(-1, -1, seen))
        logit_BTS = torch.where(place_S > start_BT1, 0, logit_BTS)
        logit_BTS = logit_BTS.masked_fill(place_S > place_S[seen - new:, None], -torch.inf)
        next_B11 = (last_BS[:, -1:, None] - (seen - new) + 1).clamp_min(0)
        return logit_BTS, choice_BTS.gather(1, next_B11.expand(-1, -1, seen))[:, 0] > -torch.inf

    def chunk_scores(self, ask_BTA: Tensor, offer_BSA: Tensor, end_BS: Tensor) -> Tensor:
        """How well the chunks that end at each token answer the newest tokens, [B, T, S]; minus infinity where none has."""
        place_S = torch.arange(end_BS.shape[1], device=end_BS.device)
        own_T1 = place_S[end_BS.shape[1] - ask_BTA.shape[1]:, None]
        score_BTS = ask_BTA @ offer_BSA.mT / math.sqrt(ask_BTA.shape[-1])
        return score_BTS.masked_fill(~end_BS[:, None] | (place_S > own_T1), -torch.inf)


@dataclass(frozen=True)
class ChunkAttention(Operator):
    """ChunkLLM (Ouyang et al., 2025): softmax attention with adapters that choose whole chunks of a text.

    chosen: chunks that are read beside a token's own; None reads everything and has no adapters, which is the backbone. Train
    that, load its weights beside those of adapters, which `bp.chunk_loss` teaches while a large number has all chunks chosen,
    and then `dataclasses.replace` the number: weights stay as they are. adapter: entries of the queries and keys that score
    chunks. Chunks end where the token says so by a learned linear map; the choice of a chunk's last token is kept until the
    next chunk ends. As long as all chunks are chosen, this is full attention. head_dim defaults to width / heads.

    The paper detects ends in the lowest layer for all layers, by a small network; here every layer has a linear detector of
    its own. A chunk is known by the key of its last token. What is not read is masked: the choice changes what is computed,
    and the costs count every token so far; the cache keeps all of them.
    """

    heads: Any = 4
    chosen: Any = None
    adapter: Any = 16
    head_dim: Any = None
    rotary: Any = True
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs Inference", 2025,
                                      options=("S427",))

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        return self.chosen is not None

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return ROTARY if self.rotary else {}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("adapter", self.adapter, where)
        if self.chosen is not None:
            require_whole("chosen", self.chosen, where, instead="use None to read all chunks")
        check_even(head_size(self, width), where)

    def axes(self, width: int) -> dict[str, Param]:
        declared = rotary_projections(width, self.heads, head_size(self, width))
        if self.chosen is None:
            return declared
        a, d, one = axis("adapter", self.adapter), axis("width", width), axis("one", 1)
        return {**declared, "ask.weight": param(a, d), "offer.weight": param(a, d), "ends.weight": param(one, d),
                "ends.bias": param(one, init=Init("constant", low=-1.0))}

    def build(self, width: int) -> nn.Module:
        sizes = (width, self.heads, head_size(self, width), bool(self.rotary), self.rope_base)
        return AllTokens(*sizes) if self.chosen is None else ChunkTokens(*sizes, self.adapter, self.chosen)

    def _per_pair(self, width: int) -> int:
        return int(2 * self.heads * head_size(self, width)) + (0 if self.chosen is None else self.adapter)

    def macs(self, width: int, length: int) -> float:
        """Projections, and the scores and values of all tokens so far, masked ones included."""
        return float(length * self.matrix_numel(width) + length * (length + 1) // 2 * self._per_pair(width))

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.matrix_numel(width) + (length + 1) * self._per_pair(width))

    def state_numel(self, width: int, length: int) -> int:
        return int(length * (2 * self.heads * head_size(self, width) + (0 if self.chosen is None else self.adapter + 2)))
