"""Attention to parts of the sequence that are chosen by content, or that stand for others."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.bi_level_routing import BiLevelRoutingAttention
from bodyplan.space.operators.chunk_attention import ChunkAttention
from bodyplan.space.operators.combiner import Combiner
from bodyplan.space.operators.hierarchical_attention import HierarchicalAttention
from bodyplan.space.operators.kmeans_cross_attention import KMeansCrossAttention
from bodyplan.space.operators.landmark_attention import LandmarkAttention
from bodyplan.space.operators.lsh_attention import LSHAttention
from bodyplan.space.operators.nprf import normal_numbers
from bodyplan.space.operators.ponet import PoNet
from bodyplan.space.operators.routing_attention import RoutingAttention
from bodyplan.space.operators.selective_attention import SelectiveAttention
from bodyplan.space.operators.space_time_attention import SpaceTimeAttention
from bodyplan.space.operators.sparsifiner import Sparsifiner

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "BiLevelRoutingAttention": [
        (BiLevelRoutingAttention(heads=4, regions=3, chosen=2), 16),
        (BiLevelRoutingAttention(heads=2, regions=2, chosen=1, kernel=3, head_dim=3), 8),
        (BiLevelRoutingAttention(heads=2, regions=1, kernel=None), 8)],
    "ChunkAttention": [
        (ChunkAttention(heads=4, chosen=2, adapter=6), 16), (ChunkAttention(heads=2, head_dim=6, adapter=3, rotary=False), 8),
        (ChunkAttention(heads=2, chosen=1, rope_base=100.0, adapter=4), 8)],
    "Combiner": [
        (Combiner(heads=4, block=4), 16), (Combiner(heads=2, block=5, head_dim=3), 8),
        (Combiner(heads=2, pattern="logsparse"), 8), (Combiner(heads=2, pattern="axial", block=6), 8)],
    "HierarchicalAttention": [
        (HierarchicalAttention(heads=4, fan_out=3), 16), (HierarchicalAttention(heads=2, fan_out=2, head_dim=3), 8)],
    "KMeansCrossAttention": [
        (KMeansCrossAttention(), 16), (KMeansCrossAttention(inner=6, mean=True), 12)],
    "LandmarkAttention": [
        (LandmarkAttention(heads=4, block=5), 16),
        (LandmarkAttention(heads=2, block=4, chosen=2, head_dim=6, rope_base=100.0), 8),
        (LandmarkAttention(heads=2, block=3, chosen=1, rotary=False), 8)],
    "LSHAttention": [
        (LSHAttention(heads=4, rounds=2, buckets=4, members=5), 16),
        (LSHAttention(heads=2, rounds=3, buckets=2, members=4, head_dim=3), 8),
        (LSHAttention(heads=2, rounds=1, buckets=1, members=7), 8)],
    "PoNet": [(PoNet(heads=4, segment=5), 16), (PoNet(heads=2, segment=4, window=5, head_dim=3), 8)],
    "RoutingAttention": [
        (RoutingAttention(heads=4, clusters=4, members=5, window=4), 16),
        (RoutingAttention(heads=2, local_heads=1, clusters=2, members=3, window=7, head_dim=3), 8),
        (RoutingAttention(heads=3, clusters=3, members=6, window=5, head_dim=4, bidirectional=True), 8)],
    "SelectiveAttention": [
        (SelectiveAttention(heads=4, reads="choose", tokens=5), 16), (SelectiveAttention(heads=2, head_dim=6, tokens=3), 8),
        (SelectiveAttention(heads=2, rotary=False, rope_base=100.0), 8)],
    "SpaceTimeAttention": [
        (SpaceTimeAttention(heads=4, places=5), 16), (SpaceTimeAttention(heads=2, places=4, over="time", rotary=True), 8),
        (SpaceTimeAttention(heads=2, head_dim=6, places=3, over="both", rotary=True, rope_base=100.0), 8)],
    "Sparsifiner": [
        (Sparsifiner(heads=4, rank=8, tokens=9), 16),
        (Sparsifiner(heads=2, rank=4, tokens=5, keep=0.5, routing_dim=3, threshold=0.1, head_dim=3), 8)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {name: {"half": "a rotary pair has two entries"}
                                       for name in ("LandmarkAttention", "SelectiveAttention", "SpaceTimeAttention")}
UNVARIED["ChunkAttention"] = {"half": "a rotary pair has two entries", "one": "a token ends a chunk or not"}


def heads_of(x, weight, heads):
    """[B, heads, T, P]."""
    return (x @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)


def merged(y, w):
    return y.transpose(1, 2).flatten(2) @ w["out.weight"].T


def rotated(x, base):
    """Pairs (i, i + P / 2) of [B, H, T, P] turned by t / base^(2 i / P)."""
    half = x.shape[-1] // 2
    rates = torch.tensor([base ** (-i / half) for i in range(half)], dtype=x.dtype)
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rates
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def landmark_attention(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    if config.rotary:
        q, k = rotated(q, config.rope_base), rotated(k, config.rope_base)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    size = config.block
    inside = [scores[..., start:start + size - 1].softmax(-1) @ v[:, :, start:start + size - 1]
              for start in range(0, x.shape[1] - size, size)]

    def at(t):
        own, starts = slice(t // size * size, t + 1), range(0, t // size * size, size)
        marks = torch.stack([scores[..., t, start + size - 1] for start in starts] or [scores[..., t, :0].sum(-1)], -1)
        if config.chosen is not None and len(starts) > config.chosen:
            least = marks.sort(-1, descending=True).values[..., config.chosen - 1, None]
            marks = marks.masked_fill(marks < least, -torch.inf)
        weights = torch.cat([scores[..., t, own], marks[..., :len(starts)]], -1).softmax(-1)
        values = torch.stack([*v[:, :, own].unbind(2), *(found[:, :, t] for found in inside[:len(starts)])], 2)
        return (weights[..., None] * values).sum(2)

    return merged(torch.stack([at(t) for t in range(x.shape[1])], 2), w)


def regions_of(t, config):
    """(tokens read directly, regions) of a query, each a list of places."""
    if config.pattern == "fixed":
        start = t // config.block * config.block
        return range(start, t + 1), [range(s, s + config.block) for s in range(0, start, config.block)]
    if config.pattern == "axial":
        start = t // config.block * config.block
        columns = [range(c, start, config.block) for c in range(config.block)] if start else []
        return range(start, t + 1), columns
    regions, start = [], 0
    for digit in reversed(range(t.bit_length())):
        if t >> digit & 1:
            regions.append(range(start, start + 2**digit))
            start += 2**digit
    return [t], regions


def combiner(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    scale = 1 / math.sqrt(q.shape[-1])

    known = {}

    def abstracted(inside):
        if inside not in known:
            query, keys = q[:, :, list(inside)].amax(2), k[:, :, list(inside)]
            weights = ((query[:, :, None] * keys).sum(-1) * scale).softmax(-1)
            known[inside] = keys.amax(2), (weights[..., None] * v[:, :, list(inside)]).sum(2)
        return known[inside]

    def at(t):
        near, regions = regions_of(t, config)
        far = [abstracted(tuple(region)) for region in regions]
        keys = torch.stack([*(k[:, :, j] for j in near), *(key for key, _ in far)], 2)
        values = torch.stack([*(v[:, :, j] for j in near), *(value for _, value in far)], 2)
        weights = ((q[:, :, t, None] * keys).sum(-1) * scale).softmax(-1)
        return (weights[..., None] * values).sum(2)

    return merged(torch.stack([at(t) for t in range(x.shape[1])], 2), w)


def newest_of(buckets, t, members):
    """The newest `members` tokens up to t with its bucket."""
    return [s for s in range(t, -1, -1) if buckets[s] == buckets[t]][:members]


def lsh_attention(w, config, x):
    q, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "value"))
    k = q / q.square().sum(-1, keepdim=True).sqrt()
    half = config.buckets // 2
    turns = normal_numbers(config.heads, config.rounds * half, q.shape[-1], "cpu", torch.float64)
    is_read = torch.zeros(len(x), config.heads, x.shape[1], x.shape[1], dtype=torch.bool)
    for b in range(len(x)):
        for h in range(config.heads):
            for r in range(config.rounds):
                turned = q[b, h] @ turns[h, r * half:(r + 1) * half].T
                buckets = torch.cat([turned, -turned], -1).argmax(-1).tolist() if half else [0] * x.shape[1]
                for t in range(x.shape[1]):
                    is_read[b, h, t, newest_of(buckets, t, config.members)] = True
    others = is_read & ~torch.eye(x.shape[1], dtype=torch.bool)
    is_read = torch.where(others.any(-1, keepdim=True), others, is_read)
    return merged(masked_mean(q, k, v, is_read), w)


def masked_mean(q, k, v, is_read):
    scores = torch.einsum("bhtp,bhsp->bhts", q, k) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~is_read, -torch.inf).softmax(-1) @ v


def routing_attention(w, config, x):
    size = w["centroids"].shape[-1]
    routing = w["centroids"].shape[0]
    q, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "value"))
    r = q[:, :routing] - q[:, :routing].mean(-1, keepdim=True)
    r = r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    centroids = w["centroids"] / w["centroids"].square().sum(-1, keepdim=True).sqrt()
    affinity = torch.einsum("bjtp,jkp->bjtk", r, centroids)
    log = affinity - affinity.exp().sum(-1, keepdim=True).log()
    k = heads_of(x, w["key.weight"], config.heads - routing) if routing < config.heads else None
    length = x.shape[1]

    y = torch.zeros_like(v)
    if k is not None:
        apart = torch.arange(length)[:, None] - torch.arange(length)
        near = (apart.abs() < config.window) & ((apart >= 0) | config.bidirectional)
        y[:, routing:] = masked_mean(q[:, routing:], k, v[:, routing:], near)
    weight = 1 + log - log.detach()
    for b in range(len(x)):
        for h in range(routing):
            scores = r[b, h] @ r[b, h].T / math.sqrt(size)
            if config.bidirectional:
                y[b, h] = mean_of_clusters(scores, v[b, h], affinity[b, h], weight[b, h], config.members)
                continue
            nearest = affinity[b, h].argmax(-1).tolist()
            is_read = torch.zeros(length, length, dtype=torch.bool)
            for t in range(length):
                is_read[t, newest_of(nearest, t, config.members)] = True
            own = weight[b, h][range(length), nearest]
            y[b, h] = own[:, None] * (scores.masked_fill(~is_read, -torch.inf).softmax(-1) @ v[b, h])
    return merged(y, w)


def mean_of_clusters(scores, values, affinity, weight, members):
    total, times = torch.zeros_like(values), torch.zeros(len(values), 1, dtype=values.dtype)
    for c in range(affinity.shape[-1]):
        taken = affinity[:, c].argsort(descending=True)[:members].tolist()
        found = weight[taken, c, None] * (scores[taken][:, taken].softmax(-1) @ values[taken])
        total = total.index_add(0, torch.tensor(taken), found)
        times[taken] += 1
    return total / times.clamp_min(1)


def bi_level_routing(w, config, x):
    grid = x[:, :, None] if x.ndim == 3 else x
    height, width = grid.shape[1:3]
    q, k, v = (grid @ w[f"{name}.weight"].T for name in ("query", "key", "value"))
    sides = -(-height // config.regions), -(-width // config.regions)
    regions = [[(i, j) for i in range(top, min(top + sides[0], height)) for j in range(left, min(left + sides[1], width))]
               for top in range(0, height, sides[0]) for left in range(0, width, sides[1])]

    def mean(y, region):
        return sum(y[:, i, j] for i, j in region) / len(region)

    affinity = torch.stack([torch.stack([(mean(q, a) * mean(k, b)).sum(-1) for b in regions], -1) for a in regions], 1)
    number = {place: n for n, region in enumerate(regions) for place in region}
    places = [(i, j) for i in range(height) for j in range(width)]
    is_read = torch.zeros(len(x), 1, len(places), len(places), dtype=torch.bool)
    for b in range(len(x)):
        best = affinity[b].argsort(-1, descending=True)[:, :config.chosen].tolist()
        near = torch.tensor([[c in row for c in range(len(regions))] for row in best])
        of = [number[place] for place in places]
        is_read[b, 0] = near[of][:, of]
    y = masked_mean(*(each.flatten(1, 2).unflatten(-1, (config.heads, -1)).transpose(1, 2) for each in (q, k, v)), is_read)
    y = y.transpose(1, 2).flatten(2).view(v.shape)
    if config.kernel is not None:
        half = config.kernel // 2
        wide = torch.zeros(len(x), height + 2 * half, width + 2 * half, v.shape[-1], dtype=v.dtype)
        wide[:, half:half + height, half:half + width] = v
        y = y + sum(w["local.taps"][:, m, n] * wide[:, m:m + height, n:n + width]
                    for m in range(config.kernel) for n in range(config.kernel))
    return (y @ w["out.weight"].T).view(x.shape)


def ponet(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    weights = ((q.mean(2, keepdim=True) * k).sum(-1) / math.sqrt(q.shape[-1])).softmax(-1)
    whole = (weights[..., None] * v).sum(2).flatten(1)
    s, o, local = (x @ w[f"{name}.weight"].T for name in ("segments", "gate", "local"))
    length, half = x.shape[1], config.window // 2

    def at(t):
        start = t // config.segment * config.segment
        segment = s[:, start:start + config.segment].max(1).values
        return (whole + segment) * o[:, t] + local[:, max(t - half, 0):t + half + 1].max(1).values

    return torch.stack([at(t) for t in range(length)], 1) @ w["out.weight"].T


def stretched(table, length):
    places, rows = len(table), []
    for t in range(length):
        at = t * (places - 1) / max(length - 1, 1)
        low = min(int(at), places - 1)
        rows.append(table[low] + (at - low) * (table[min(low + 1, places - 1)] - table[low]))
    return torch.stack(rows)


def sparsifiner(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    length, size = x.shape[1], q.shape[-1]
    a, b = q @ w["route_query.weight"].T, k @ w["route_key.weight"].T
    basis = torch.einsum("bhtc,tr->bhcr", b, stretched(w["down"], length))
    coefficients = torch.einsum("bhtc,bhcr->bhtr", a, basis) / math.sqrt(a.shape[-1])
    coefficients = coefficients.softmax(-1)
    coefficients = torch.where(coefficients > config.threshold, coefficients, 0.0)
    estimate = torch.einsum("bhtr,sr->bhts", coefficients, stretched(w["up"], length).abs())
    count = max(1, math.ceil(config.keep * length))
    floor = estimate.sort(-1, descending=True).values[..., count - 1:count]
    log = estimate.clamp_min(1e-6).log()
    scores = torch.einsum("bhtp,bhsp->bhts", q, k) / math.sqrt(size) + log - log.detach()
    return merged(scores.masked_fill(estimate < floor, -torch.inf).softmax(-1) @ v, w)


def hierarchical_attention(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    q = q / math.sqrt(q.shape[-1])
    length = x.shape[1]
    nodes = [range(t, t + 1) for t in range(length)]
    inside = [(q[:, :, t] * k[:, :, t]).sum(-1) for t in range(length)]
    y = list(v.unbind(2))
    while len(nodes) > 1:
        parents, above = [], []
        for start in range(0, len(nodes), config.fan_out):
            family, total = range(start, min(start + config.fan_out, len(nodes))), 0
            for a in family:
                parts = [inside[a].exp()]
                values = []
                for b in family:
                    if b != a:
                        mean_q, mean_k, mean_v = (part[:, :, node].mean(2) for part, node in (
                            (q, nodes[a]), (k, nodes[b]), (v, nodes[b])))
                        parts.append(len(nodes[b]) * (mean_q * mean_k).sum(-1).exp())
                        values.append(mean_v)
                z = sum(parts)
                for t in nodes[a]:
                    y[t] = (sum((p[..., None] * u for p, u in zip(parts[1:], values, strict=True)),
                                parts[0][..., None] * y[t])) / z[..., None]
                total = total + len(nodes[a]) * z.log()
            parents.append(range(nodes[family[0]].start, nodes[family[-1]].stop))
            above.append(total / len(parents[-1]))
        nodes, inside = parents, above
    return merged(torch.stack(y, 2), w)


def selective_attention(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    if config.rotary:
        q, k = rotated(q, config.rope_base), rotated(k, config.rope_base)
    return merged(masked_mean(q, k, v, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()), w)


def chunk_attention(w, config, x):
    """Token by token, with a list of chunks, each a list of places."""
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    if config.rotary:
        q, k = rotated(q, config.rope_base), rotated(k, config.rope_base)
    if config.chosen is None:
        return merged(masked_mean(q, k, v, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()), w)
    ask, offer, ends = x @ w["ask.weight"].T, x @ w["offer.weight"].T, x @ w["ends.weight"][0] + w["ends.bias"]
    rows = []
    for b in range(len(x)):
        chunks, current, read = [], [], {}
        for t in range(x.shape[1]):
            current = [*current, t]
            places = [*current, *read]
            logits = torch.stack([(q[b, :, t] * k[b, :, s]).sum(-1) / math.sqrt(q.shape[-1]) + read.get(s, 0)
                                  for s in places], -1)
            rows.append((logits.softmax(-1)[..., None] * v[b][:, places]).sum(1))
            if ends[b, t] > 0:
                chunks, current = [*chunks, current], []
                scored = [(ask[b, t] @ offer[b, chunk[-1]] / math.sqrt(config.adapter), chunk) for chunk in chunks]
                best = sorted(scored, key=lambda pair: float(pair[0].detach()), reverse=True)[:config.chosen]
                # A chunk's score, and at its own last token how sure the end is, as terms of no size that have a gradient.
                read = {s: score - score.detach() + (ends[b, chunk[-1]] - ends[b, chunk[-1]].detach())
                        for score, chunk in best for s in chunk}
    return merged(torch.stack(rows).view(len(x), x.shape[1], config.heads, -1).transpose(1, 2), w)


def space_time_attention(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    length = x.shape[1]
    lines = {"space": [range(s, min(s + config.places, length)) for s in range(0, length, config.places)],
             "time": [range(n, length, config.places) for n in range(min(config.places, length))], "both": [range(length)]}
    y = torch.zeros_like(v)
    for line in map(list, lines[config.over]):
        each = [part[:, :, line] for part in (q, k, v)]
        if config.rotary:
            each[:2] = rotated(each[0], config.rope_base), rotated(each[1], config.rope_base)
        mean = masked_mean(*each, torch.ones(len(line), len(line), dtype=torch.bool))
        y = y.index_add(2, torch.tensor(line), mean)
    return merged(y, w)


REFERENCES = {
    "SpaceTimeAttention": space_time_attention, "ChunkAttention": chunk_attention,
    "HierarchicalAttention": hierarchical_attention, "SelectiveAttention": selective_attention,
    "BiLevelRoutingAttention": bi_level_routing, "Combiner": combiner, "LSHAttention": lsh_attention,
    "LandmarkAttention": landmark_attention, "PoNet": ponet, "RoutingAttention": routing_attention,
    "Sparsifiner": sparsifiner,
}
