"""Attention to blocks through their landmarks.

Legend: B batch, T new tokens, S tokens so far, H heads, P head_dim, C blocks, N places of a block, R blocks read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param
from ..operator import Operator, Source
from .checks import require_whole
from .gathered import ROTARY, ROWS, CachedAttention, blocks_begun, check_even, cut, gathered, rotary_projections
from .windows import check_heads, head_size

__all__ = ["LandmarkAttention", "Landmarks"]


class Landmarks(CachedAttention):
    """A grouped softmax: a query weighs the tokens of its own block up to itself and the landmarks of the blocks before; the
    weight of a landmark goes to the other tokens of its block, by a softmax among them.

    The landmark of a block is its last token, whose value only its own block reads: nothing comes after it there, so nobody
    but itself. With `chosen`, each query and head reads only the blocks whose landmarks score highest.
    """

    def __init__(self, width: int, heads: int, head_dim: int, block: int, chosen: int | None, rotary: bool,
                 rope_base: float, rows: int = 256):
        super().__init__(width, heads, head_dim, rotary, rope_base)
        self.block, self.chosen, self.rows = block, chosen, rows

    def attend(self, q_BHTP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
        k_BHCNP, v_BHCNP = cut(k_BHSP, self.block), cut(v_BHSP, self.block)
        place_T = torch.arange(k_BHSP.shape[2] - q_BHTP.shape[2], k_BHSP.shape[2], device=q_BHTP.device)
        q_BHTP = q_BHTP / math.sqrt(self.head_dim)
        read = self.read_all if self.chosen is None else self.read_chosen
        rows = zip(torch.split(q_BHTP, self.rows, 2), torch.split(place_T, self.rows), strict=True)
        return torch.cat([read(q, place, k_BHCNP, v_BHCNP) for q, place in rows], dim=2)

    def read_all(self, q_BHTP: Tensor, place_T: Tensor, k_BHCNP: Tensor, v_BHCNP: Tensor) -> Tensor:
        logits_BHTS = q_BHTP @ k_BHCNP.flatten(2, 3).transpose(2, 3)
        block_C = torch.arange(k_BHCNP.shape[2], device=place_T.device)
        own_T1 = (place_T // self.block)[:, None]
        weights_BHTCN = self.grouped(torch.unflatten(logits_BHTS, 3, k_BHCNP.shape[2:4]), place_T, block_C == own_T1,
                                     block_C > own_T1)
        return weights_BHTCN.flatten(3) @ v_BHCNP.flatten(2, 3)

    def read_chosen(self, q_BHTP: Tensor, place_T: Tensor, k_BHCNP: Tensor, v_BHCNP: Tensor) -> Tensor:
        block_C = torch.arange(k_BHCNP.shape[2], device=place_T.device)
        own_T1 = (place_T // self.block)[:, None]
        score_BHTC = (q_BHTP @ k_BHCNP[:, :, :, -1].transpose(2, 3)).masked_fill(block_C >= own_T1, -torch.inf)
        best_BHTR = score_BHTC.topk(min(self.chosen or 0, score_BHTC.shape[-1]), dim=-1)
        own_BHT1 = own_T1.expand(*score_BHTC.shape[:3], 1)
        index_BHTR = torch.cat([best_BHTR.indices, own_BHT1], dim=-1)
        k_BHTMP, v_BHTMP = gathered(k_BHCNP, index_BHTR), gathered(v_BHCNP, index_BHTR)
        logits_BHTM = (k_BHTMP @ q_BHTP[..., None])[..., 0]
        is_own_R = torch.arange(index_BHTR.shape[-1], device=place_T.device) == index_BHTR.shape[-1] - 1
        hidden_BHTR = torch.cat([best_BHTR.values == -torch.inf, torch.zeros_like(own_BHT1, dtype=torch.bool)], dim=-1)
        weights_BHTRN = self.grouped(torch.unflatten(logits_BHTM, 3, (-1, self.block)), place_T, is_own_R, hidden_BHTR)
        y_BHTP: Tensor = (weights_BHTRN.flatten(3)[..., None, :] @ v_BHTMP)[..., 0, :]
        return y_BHTP

    def grouped(self, logits_BHTRN: Tensor, place_T: Tensor, is_own: Tensor, is_hidden: Tensor) -> Tensor:
        """The weights of all tokens of the blocks, which are a query's own, earlier ones, or hidden from it."""
        place_N = torch.arange(self.block, device=place_T.device)
        before_T11 = (place_T % self.block)[:, None, None]
        seen_TRN = torch.where(is_own[..., None], place_N <= before_T11, place_N < self.block - 1)
        inner_BHTRN = logits_BHTRN.masked_fill(~seen_TRN, -torch.inf)
        outer_BHTR = torch.where(is_own, inner_BHTRN.logsumexp(-1), logits_BHTRN[..., -1])
        outer_BHTR = outer_BHTR.masked_fill(is_hidden, -torch.inf).softmax(-1)
        return outer_BHTR[..., None] * inner_BHTRN.softmax(-1)


@dataclass(frozen=True)
class LandmarkAttention(Operator):
    """Landmark Attention: Random-Access Infinite Context Length for Transformers (Mohtashami and Jaggi, 2023).

    block: tokens of a block with its landmark, the last of them. Where the data has a token of its own at those places, this
    is the paper's training; elsewhere the last token of a block stands for it. chosen: None reads all blocks, as in
    training; a number is the paper's retrieval, by each head and token: `dataclasses.replace` a trained architecture's and
    its weights stay as they are. rotary: positions (Su et al., 2021), of the tokens where they are; the paper's maps of
    positions for sequences longer than the training's are left out. head_dim defaults to width / heads.

    With `chosen` time and memory are linear in the length but for one product per block; the cache keeps all tokens.
    """

    heads: Any = 4
    block: Any = 51
    chosen: Any = None
    head_dim: Any = None
    rotary: Any = True
    rope_base: float = 10000.0
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Landmark Attention: Random-Access Infinite Context Length for Transformers", 2023,
                                      systems=("S398",))

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        return self.chosen is not None

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return ROTARY if self.rotary else {}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("block", self.block, where, low=2, instead="use 51, of which one is the landmark")
        if self.chosen is not None:
            require_whole("chosen", self.chosen, where, instead="use None to read all blocks")
        check_even(head_size(self, width), where)

    def axes(self, width: int) -> dict[str, Param]:
        return rotary_projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        return Landmarks(width, self.heads, head_size(self, width), self.block, self.chosen, bool(self.rotary),
                         self.rope_base, ROWS)

    def _reads(self, length: int) -> int:
        """Products of a head dimension that the first `length` tokens need, last blocks filled up."""
        if self.chosen is None:
            return int(2 * self.block * blocks_begun(length, self.block))
        chosen = blocks_begun(length, self.block, self.chosen)
        return int(blocks_begun(length, self.block) + 2 * self.block * (chosen + length))

    def macs(self, width: int, length: int) -> float:
        """Projections, scores of landmarks, and scores and values of the blocks read."""
        return float(length * self.matrix_numel(width) + self.heads * head_size(self, width) * self._reads(length))

    def decode_macs(self, width: int, length: int) -> float:
        reads = self._reads(length + 1) - self._reads(length)
        return float(self.matrix_numel(width) + self.heads * head_size(self, width) * reads)

    def state_numel(self, width: int, length: int) -> int:
        return int(2 * length * self.heads * head_size(self, width))
