"""How the matrix of a token reduction is made: from features, from the keys of an attention layer, or from its attention.

Legend: B batch, N tokens, P entries of a key, H heads, F free tokens (all but the protected first), R tokens that go,
A and C the two sides of a matching, M tokens after.

Each is called with the stream [B, N, D], keys averaged over heads [B, N, P], attention [B, H, N, N] (a row is a query) and
the sizes of the tokens [B, N], and gives a `Rows` or a `Mixture`. None has parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transforms import Mixture, Rows, rows_of

__all__ = ["BipartiteMatching", "ClassAttended", "EnergyMatching", "FirstRows", "PageRank", "SoftSelection",
           "alike_of", "matched", "share_of"]


def share_of(keep: float, tokens: int) -> int:
    """How many of `tokens` go when a share `keep` stays: rounded down."""
    return math.floor((1 - keep) * tokens + 1e-9)


def matched(remove: int, tokens: int, protected: int) -> int:
    """How many of the free tokens at even places can go to those at odd places, at most `remove`."""
    even, odd = -(-tokens // 2) - -(-protected // 2), tokens // 2 - protected // 2
    return min(remove, even) if odd > 0 else 0


def alike_of(share: float, goes: int, free: int) -> int:
    """How many of the tokens that go do so for their likeness: only the less important half can."""
    return min(round(share * goes), (free + 1) // 2) if free > 1 else 0


def own_places(like_BN: Tensor) -> Tensor:
    """The place of every token, [B, N]."""
    return torch.arange(like_BN.shape[1], device=like_BN.device).expand(like_BN.shape[:2])


def dropped(target_BN: Tensor, places_BR: Tensor) -> Tensor:
    """-1 at these places."""
    return target_BN.scatter(1, places_BR, torch.full_like(places_BR, -1))


class BipartiteMatching(nn.Module):
    """Each token at an even place looks for the most similar one at an odd place; the most similar pairs are merged."""

    def __init__(self, remove: int, protected: int = 0):
        super().__init__()
        self.remove, self.protected = remove, protected

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor | None, size_BN: Tensor) -> Rows:
        tokens = key_BNP.shape[1]
        count = matched(self.remove, tokens, self.protected)
        k_BNP = F.normalize(key_BNP, dim=-1)
        similar_BAC = k_BNP[:, ::2] @ k_BNP[:, 1::2].mT
        guarded_N = torch.arange(tokens, device=key_BNP.device) < self.protected
        similar_BAC = similar_BAC.masked_fill(guarded_N[::2, None] | guarded_N[None, 1::2], -torch.inf)
        best_BA, nearest_BA = similar_BAC.max(-1)
        goes_BR = best_BA.topk(count, -1).indices
        target_BN = own_places(size_BN).scatter(1, 2 * goes_BR, 2 * nearest_BA.gather(1, goes_BR) + 1)
        return rows_of(target_BN, size_BN, tokens - count)


class EnergyMatching(nn.Module):
    """Tokens of high energy, which are like many others, are merged; those of low energy stay as they are.

    The energy is the mean over the tokens of f(cosine), f(c) = c from the margin on, below it alpha (exp(c - margin) - 1).
    The 2 R tokens of the highest are split by turns, and each of the one half goes to the most similar of the other.
    """

    def __init__(self, keep: float, margin: float, alpha: float, protected: int = 0):
        super().__init__()
        self.keep, self.margin, self.alpha, self.protected = keep, margin, alpha, protected

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor | None, size_BN: Tensor) -> Rows:
        k_BFP = F.normalize(key_BNP[:, self.protected:], dim=-1)
        count = share_of(self.keep, k_BFP.shape[1])
        similar_BFF = k_BFP @ k_BFP.mT
        low_BFF = self.alpha * torch.expm1(similar_BFF - self.margin)
        energy_BF = torch.where(similar_BFF >= self.margin, similar_BFF, low_BFF).mean(-1)
        order_BF = energy_BF.argsort(dim=-1, descending=True, stable=True)
        from_BR, to_BR = order_BF[:, :2 * count:2], order_BF[:, 1:2 * count:2]
        rows_BRF = similar_BFF.gather(1, from_BR[..., None].expand(-1, -1, similar_BFF.shape[-1]))
        nearest_BR = rows_BRF.gather(2, to_BR[:, None].expand(-1, count, -1)).argmax(-1)
        target_BN = own_places(size_BN).scatter(1, from_BR + self.protected, to_BR.gather(1, nearest_BR) + self.protected)
        return rows_of(target_BN, size_BN, key_BNP.shape[1] - count)


class FirstRows(nn.Module):
    """The first tokens."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor | None, size_BN: Tensor) -> Rows:
        place_BN = own_places(size_BN)
        count = min(self.count, size_BN.shape[1])
        return rows_of(torch.where(place_BN < count, place_BN, -1), size_BN, count)


class ClassAttended(nn.Module):
    """The tokens that the class token, the first one, attends to most; heads are averaged."""

    def __init__(self, keep: float, protected: int = 1):
        super().__init__()
        self.keep, self.protected = keep, protected

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor, size_BN: Tensor) -> Rows:
        score_BF = attention_BHNN[:, :, 0, self.protected:].mean(1)
        count = share_of(self.keep, score_BF.shape[1])
        goes_BR = score_BF.argsort(dim=-1, stable=True)[:, :count] + self.protected
        return rows_of(dropped(own_places(size_BN), goes_BR), size_BN, size_BN.shape[1] - count)


class PageRank(nn.Module):
    """Similar tokens of those that one vote finds important, then the least important after many votes, are dropped.

    A vote is s <- A^T s on the attention of a head. Heads whose scores vary too little or too much do not count, unless that
    is all of them; the others give the root of the mean square.
    """

    def __init__(self, keep: float, similar: float, rounds: int, low: float, high: float, protected: int = 0):
        super().__init__()
        self.keep, self.similar, self.rounds = keep, similar, rounds
        self.low, self.high, self.protected = low, high, protected

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor, size_BN: Tensor) -> Rows:
        tokens, first = key_BNP.shape[1], self.protected
        count = share_of(self.keep, tokens - first)
        alike = alike_of(self.similar, count, tokens - first)
        target_BN = own_places(size_BN)
        if alike:
            goes_BR = self.alike(self.importance(attention_BHNN, 1)[:, first:], key_BNP[:, first:], alike) + first
            target_BN = dropped(target_BN, goes_BR)
        stays_BM = (target_BN >= 0).to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :tokens - alike]
        rest_BHMM = attention_BHNN.gather(2, stays_BM[:, None, :, None].expand(-1, attention_BHNN.shape[1], -1, tokens))
        rest_BHMM = rest_BHMM.gather(3, stays_BM[:, None, None, :].expand(*rest_BHMM.shape[:3], -1))
        rest_BHMM = rest_BHMM / rest_BHMM.sum(-1, keepdim=True)
        lowest_BR = self.importance(rest_BHMM, self.rounds)[:, first:].argsort(dim=-1, stable=True)[:, :count - alike] + first
        return rows_of(dropped(target_BN, stays_BM.gather(1, lowest_BR)), size_BN, tokens - count)

    def importance(self, attention_BHNN: Tensor, rounds: int) -> Tensor:
        """Of every token, [B, N]; they start alike, the protected ones with sqrt(N) times as much."""
        tokens = attention_BHNN.shape[-1]
        is_first_N = torch.arange(tokens, device=attention_BHNN.device) < self.protected
        start_N = torch.where(is_first_N, math.sqrt(tokens), 1.0).to(attention_BHNN.dtype)
        score_BH1N = start_N.expand(*attention_BHNN.shape[:2], 1, tokens)
        for _ in range(rounds):
            score_BH1N = score_BH1N @ attention_BHNN
        score_BHN = score_BH1N[:, :, 0]
        spread_BH = (score_BHN / score_BHN.mean(-1, keepdim=True)).var(-1, correction=0)
        counts_BH = (spread_BH >= self.low) & (spread_BH <= self.high)
        counts_BH = counts_BH | ~counts_BH.any(1, keepdim=True)
        weight_BH1 = counts_BH.to(score_BHN.dtype)[..., None]
        return ((weight_BH1 * score_BHN.square()).sum(1) / weight_BH1.sum(1)).sqrt()

    def alike(self, score_BF: Tensor, key_BFP: Tensor, count: int) -> Tensor:
        """The places of the less important half that are most like one of the more important half."""
        order_BF = score_BF.argsort(dim=-1, descending=True, stable=True)
        half = score_BF.shape[1] // 2
        k_BFP = F.normalize(key_BFP, dim=-1).gather(1, order_BF[..., None].expand_as(key_BFP))
        best_BA = (k_BFP[:, half:] @ k_BFP[:, :half].mT).max(-1).values
        return order_BF[:, half:].gather(1, best_BA.argsort(dim=-1, descending=True, stable=True)[:, :count])


class SoftSelection(nn.Module):
    """Every row is a softmax-weighted mean of all free tokens, by the likeness of their keys to those of an important token.

    Importance is the attention of the class token where there are protected tokens, else the mean attention received. The
    protected tokens have rows of their own.
    """

    def __init__(self, keep: float, temperature: float, protected: int = 0):
        super().__init__()
        self.keep, self.temperature, self.protected = keep, temperature, protected

    def forward(self, x_BND: Tensor, key_BNP: Tensor, attention_BHNN: Tensor, size_BN: Tensor) -> Mixture:
        first, tokens = self.protected, key_BNP.shape[1]
        asked_BHN = attention_BHNN[:, :, 0] if first else attention_BHNN.mean(2)
        stays = tokens - first - share_of(self.keep, tokens - first)
        order_BF = asked_BHN.mean(1)[:, first:].argsort(dim=-1, descending=True, stable=True)
        places_BM = order_BF[:, :stays].sort(-1).values
        k_BFP = F.normalize(key_BNP[:, first:], dim=-1)
        centre_BMP = k_BFP.gather(1, places_BM[..., None].expand(-1, -1, k_BFP.shape[-1]))
        weight_BMF = torch.softmax(centre_BMP @ k_BFP.mT / self.temperature, -1)
        if first == 0:
            return Mixture(weight_BMF)
        own_BPN = torch.eye(first, tokens, dtype=x_BND.dtype, device=x_BND.device).expand(len(x_BND), -1, -1)
        return Mixture(torch.cat([own_BPN, F.pad(weight_BMF, (first, 0))], 1))
