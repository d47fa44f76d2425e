"""Positions as terms of attention scores: functions of the distance between query and key.

Legend: B batch, T queries, S keys, G key/value heads, R queries per key, P head_dim, N distances, F hidden.

Each module takes scores [B, G, R, T, S], the scaled queries [B, T, G, R, P] and the keys [B, S, G, P] they come from, the
position of the first query and the scale, and returns the scores with its terms.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BucketBias", "DistanceScalars", "InterpolatedBias", "OffsetFactors", "OffsetScalars", "OffsetVectors",
           "SinusoidTerms", "SlopeBias", "bucket_bounds", "distance_between", "slopes"]


def distance_between(new: int, seen: int, device: torch.device) -> Tensor:
    """Query position minus key position, [T, S], where the last query is the last key."""
    query_T1 = torch.arange(seen - new, seen, device=device)[:, None]
    return query_T1 - torch.arange(seen, device=device)


def distances_of(score: Tensor) -> Tensor:
    """`distance_between` the queries and keys of scores [..., T, S]."""
    return distance_between(score.shape[-2], score.shape[-1], score.device)


def slopes(heads: int) -> list[float]:
    """Of ALiBi: the powers of 2 ** (-8 / n) for n heads; where n is no power of two, those of the next smaller power and
    then every other one of twice as many."""
    power = 2 ** int(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return first + [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


def bucket_bounds(buckets: int, reach: int) -> list[int]:
    """Smallest distance of every bucket but the first: one by one up to half of them, then growing evenly by ratio up to
    `reach`, which starts no bucket of its own."""
    exact = buckets // 2
    ratio = reach / exact
    grown = [math.ceil(exact * ratio ** (i / (buckets - exact)) - 1e-9) for i in range(1, buckets - exact)]
    return [*range(1, exact + 1), *grown]


class SlopeBias(nn.Module):
    """`-slope_h |i - j|`, nothing learned."""

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        groups, per_group, new, seen = score.shape[1:]
        distance_TS = distance_between(new, seen, score.device).abs().to(score.dtype)
        slope_GR = torch.tensor(slopes(groups * per_group), dtype=score.dtype, device=score.device).view(groups, per_group)
        return score - slope_GR[:, :, None, None] * distance_TS


class BucketBias(nn.Module):
    """A learned number per head and bucket of distances, which widen towards `reach`; both ways with half the buckets
    each."""

    def __init__(self, heads: int, buckets: int, reach: int, bidirectional: bool):
        super().__init__()
        self.buckets, self.reach, self.bidirectional = buckets, reach, bidirectional
        self.bucket_bias = nn.Parameter(torch.empty(buckets, heads))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        groups, per_group, new, seen = score.shape[1:]
        bias_TSH = self.bucket_bias[self.bucket(distance_between(new, seen, score.device))]
        return score + bias_TSH.view(new, seen, groups, per_group).permute(2, 3, 0, 1)

    def bucket(self, distance_TS: Tensor) -> Tensor:
        """Keys after the query are counted from the second half of the table on."""
        each = self.buckets // 2 if self.bidirectional else self.buckets
        bounds = torch.tensor(bucket_bounds(each, self.reach), device=distance_TS.device)
        if not self.bidirectional:
            return torch.bucketize(distance_TS.clamp(min=0), bounds, right=True)
        return torch.bucketize(distance_TS.abs(), bounds, right=True) + each * (distance_TS < 0)


class InterpolatedBias(nn.Module):
    """A small network of `psi(i - j) / psi(max(L, i))`, psi(x) = log(1 + c x), with c and L learned: a distance is measured
    by how long the sequence is so far."""

    def __init__(self, heads: int, hidden: int, reach: int):
        super().__init__()
        self.reach = reach
        self.curve = nn.Parameter(torch.empty(1))
        self.threshold = nn.Parameter(torch.empty(1))
        self.hidden = nn.Linear(1, hidden)
        self.out = nn.Linear(hidden, heads)

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        groups, per_group, new, seen = score.shape[1:]
        dtype = torch.promote_types(score.dtype, torch.float32)
        distance_TS = distance_between(new, seen, score.device).clamp(min=0).to(dtype)
        query_T1 = torch.arange(start, start + new, device=score.device, dtype=dtype)[:, None]
        curve = self.curve.to(dtype).abs()
        most_T1 = torch.maximum(query_T1, (self.threshold.to(dtype) * self.reach).abs())
        share_TS = torch.log1p(curve * distance_TS) / (torch.log1p(curve * most_T1) + 1e-6)
        bias_TSH: Tensor = self.out(F.relu(self.hidden(share_TS.to(score.dtype)[..., None])))
        return score + bias_TSH.view(new, seen, groups, per_group).permute(2, 3, 0, 1)


def entry_of(distance_TS: Tensor, reach: int, signed: bool) -> Tensor:
    """The place of a distance in a table that ends at `reach`: absolute, or with those to later keys first."""
    return distance_TS.clamp(1 - reach, reach - 1) + reach - 1 if signed else distance_TS.abs().clamp(max=reach - 1)


class DistanceScalars(nn.Module):
    """`q.k a`, a learned number per absolute distance (method 1)."""

    def __init__(self, reach: int):
        super().__init__()
        self.by_distance = nn.Parameter(torch.empty(reach))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        distance_TS = distances_of(score)
        return score * self.by_distance[entry_of(distance_TS, len(self.by_distance), False)]


class OffsetScalars(nn.Module):
    """`q.k a`, a learned number per signed distance (method 2)."""

    def __init__(self, reach: int, signed: bool):
        super().__init__()
        self.reach, self.signed = reach, signed
        self.by_offset = nn.Parameter(torch.empty(2 * reach - 1 if signed else reach))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        return score * self.by_offset[entry_of(distances_of(score), self.reach, self.signed)]


class OffsetFactors(nn.Module):
    """`sum(q k a)`, a learned vector per signed distance for all heads (method 3): P products per pair of tokens, so
    queries are taken `block` at a time."""

    def __init__(self, head_dim: int, reach: int, signed: bool, block: int = 16):
        super().__init__()
        self.reach, self.signed, self.block = reach, signed, block
        self.factors = nn.Parameter(torch.empty(2 * reach - 1 if signed else reach, head_dim))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        entry_TS = entry_of(distances_of(score), self.reach, self.signed)
        rows = zip(torch.split(q, self.block, 1), torch.split(entry_TS, self.block), strict=True)
        products = [torch.einsum("btgrp,tsp,bsgp->bgrts", q_row, self.factors[entry], k) for q_row, entry in rows]
        return torch.cat(products, -2)


class OffsetVectors(nn.Module):
    """`q.k + q.a + k.a`, a learned vector per signed distance for all heads (method 4)."""

    def __init__(self, head_dim: int, reach: int, signed: bool):
        super().__init__()
        self.reach, self.signed = reach, signed
        self.vectors = nn.Parameter(torch.empty(2 * reach - 1 if signed else reach, head_dim))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        entry_TS = entry_of(distances_of(score), self.reach, self.signed)
        return score + self.with_queries(q, entry_TS) + scale * self.with_keys(k, entry_TS)[:, :, None]

    def with_queries(self, q_BTGRP: Tensor, entry_TS: Tensor) -> Tensor:
        """[B, G, R, T, S]: products with every vector, of which each key picks one."""
        product = torch.matmul(q_BTGRP, self.vectors.t()).permute(0, 2, 3, 1, 4)
        return product.gather(-1, entry_TS.expand(*product.shape[:3], -1, -1))

    def with_keys(self, k_BSGP: Tensor, entry_TS: Tensor) -> Tensor:
        """[B, G, T, S]; a single query needs one product per key, not all of them."""
        if entry_TS.shape[0] == 1:
            return (k_BSGP * self.vectors[entry_TS[0]][:, None]).sum(-1).transpose(1, 2)[:, :, None]
        product = torch.matmul(k_BSGP, self.vectors.t()).permute(0, 2, 3, 1)
        return product.gather(2, entry_TS.expand(*product.shape[:2], -1, -1))


class SinusoidTerms(nn.Module):
    """`q.k + q.r + u.k + v.r`, r a projected sinusoid of the distance, u and v learned per head (Transformer-XL)."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, bidirectional: bool, base: float = 10000.0):
        super().__init__()
        self.width, self.kv_heads, self.head_dim = width, kv_heads, head_dim
        self.bidirectional, self.base = bidirectional, base
        self.distance = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.key_bias = nn.Parameter(torch.empty(heads, head_dim))
        self.distance_bias = nn.Parameter(torch.empty(heads, head_dim))

    def forward(self, score: Tensor, q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
        """q [B, T, G, R, P] is scaled; k [B, S, G, P] is not."""
        groups, per_group, new, seen = score.shape[1:]
        first = 1 - new if self.bidirectional else 0
        r_NGP = self.distances(first, seen, score)
        u_GRP, v_GRP = (bias.view(groups, per_group, self.head_dim) * scale for bias in (self.key_bias, self.distance_bias))
        index_TS = distance_between(new, seen, score.device).clamp(min=first) - first
        by_distance = torch.matmul((q + v_GRP).permute(0, 2, 3, 1, 4), r_NGP.permute(1, 2, 0)[:, None])
        content = torch.matmul(u_GRP, k.permute(0, 2, 3, 1))[:, :, :, None]
        return score + content + by_distance.gather(-1, index_TS.expand(*score.shape[:3], -1, -1))

    def distances(self, first: int, end: int, like: Tensor) -> Tensor:
        """Projected sinusoids of the distances from `first` up to `end`, [N, G, P]."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        steps = torch.arange(0, self.width, 2, device=like.device, dtype=dtype)
        angle_NF = torch.outer(torch.arange(first, end, device=like.device, dtype=dtype), self.base ** (-steps / self.width))
        wave_ND = torch.cat([angle_NF.sin(), angle_NF.cos()], -1)[:, :self.width].to(like.dtype)
        r_NGP: Tensor = self.distance(wave_ND).view(-1, self.kv_heads, self.head_dim)
        return r_NGP
