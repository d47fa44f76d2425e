"""Softmax attention that reads a random part of the tokens while it trains.

Legend: B batch, T tokens, C groups, N tokens of a group, H query heads, G key/value heads, P head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operator import Source
from .causal_attention import CausalAttention, attend

__all__ = ["Subsample", "SubsampledAttention", "attend_in_groups", "shuffled"]


def shuffled(length: int, spread: float | None, device: torch.device) -> Tensor:
    """The tokens in a random order, [T], from torch's generator; with a spread each moves by so many places, normally."""
    noise_T = torch.randn(length, device=device)
    return (noise_T if spread is None else torch.arange(length, device=device) + spread * noise_T).argsort()


def attend_in_groups(q_BTHP: Tensor, k_BTGP: Tensor, v_BTGP: Tensor, order_T: Tensor, size: int,
                     bidirectional: bool) -> Tensor:
    """Softmax attention inside groups of `size` tokens that follow one another in `order_T`, [B, T, H, P]."""
    length = len(order_T)
    groups = -(-length // size)
    place_CN = F.pad(order_T, (0, groups * size - length), value=-1).view(groups, size)
    read_CNN = (place_CN[:, None] >= 0) & (bidirectional | (place_CN[:, None] <= place_CN[..., None]))
    read_CNN = read_CNN | torch.eye(size, dtype=torch.bool, device=q_BTHP.device)         # what fills up reads itself
    q, k, v = (part[:, place_CN.clamp_min(0)].transpose(2, 3) for part in (q_BTHP, k_BTGP, v_BTGP))
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    y_BCHNP = F.scaled_dot_product_attention(q, k, v, attn_mask=read_CNN[:, None])
    return y_BCHNP.transpose(2, 3).flatten(1, 2)[:, order_T.argsort()]


class SubsampledAttention(CausalAttention):
    """In training every token of a whole sequence reads its own group of a random partition; else all of them."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, rope_base: float, rotary: bool, qk_norm: bool,
                 value_residual: bool, half_first: bool, sub_norm: bool, keep: float, spread: float | None,
                 bidirectional: bool):
        super().__init__(width, heads, kv_heads, head_dim, None, rope_base, rotary, qk_norm, value_residual, half_first,
                         sub_norm)
        self.keep, self.spread, self.bidirectional = keep, spread, bidirectional

    def attend(self, q_BHTP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        length = k_BSGP.shape[1]
        size = math.ceil(self.keep * length)
        if self.training and q_BHTP.shape[1] == length and size < length:
            order_T = shuffled(length, self.spread, k_BSGP.device)
            return attend_in_groups(q_BHTP, k_BSGP, v_BSGP, order_T, size, self.bidirectional)
        return attend(q_BHTP, k_BSGP, v_BSGP, None, self.bidirectional)


@dataclass(frozen=True)
class Subsample:
    """Stochastically subsampled self-attention (Hussain et al., 2023), as `Attention(subsample=Subsample(keep=0.25))`.

    keep: the share of the tokens that each reads in training, itself among them; multiply-adds and memory of scores shrink
    to it. spread: None for any tokens alike; a number of places, about which tokens move before they are put into groups,
    so that each reads tokens near it more often. Every layer draws anew, for all sequences and heads of a pass, from torch's
    generator. The sample is read as a random partition into groups of `keep` times the length.

    Outside of training it reads everything, and its costs are those of that; a network in training mode is one of the
    sub-models, over which `bp.self_ensemble` takes the mean. The short training without sampling at the end is that of the
    same network with `subsample=None`, whose weights these are.
    """

    keep: Any = 0.25
    spread: Any = None
    proof: ClassVar[str] = "tests/space/operators/test_subsampled_attention.py"
    source: ClassVar[Source] = Source("The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles", 2023,
                                      systems=("S215",))

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise ValueError(f"keep must be a share above 0, at most 1, at {where}: got {self.keep!r}; use 0.25")
        if self.spread is not None and not (isinstance(self.spread, (int, float)) and 0 <= self.spread < math.inf):
            raise ValueError(f"spread must be a number of places at {where}: got {self.spread!r}; use None for any tokens")
