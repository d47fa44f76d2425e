"""Attention in windows and neighbourhoods of a grid, and what is built around them."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.causal_neighbourhood import CausalNeighbourhood
from bodyplan.space.operators.conv_attention import ConvAttention
from bodyplan.space.operators.conv_channel_attention import ConvChannelAttention
from bodyplan.space.operators.dynamic_local_conv import DynamicLocalConv
from bodyplan.space.operators.halo_attention import HaloAttention
from bodyplan.space.operators.halo_bottleneck import HaloBottleneck
from bodyplan.space.operators.interleaved_attention import InterleavedAttention
from bodyplan.space.operators.neighbourhood_attention import NeighbourhoodAttention
from bodyplan.space.operators.recursive_attention import RecursiveAttention
from bodyplan.space.operators.simplified_linear_attention import SimplifiedLinearAttention
from bodyplan.space.operators.spatial_channel import SpatialChannelCorrelation
from bodyplan.space.operators.token_aware_pooling import TokenAwarePooling
from bodyplan.space.operators.transposed_attention import TransposedAttention

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "CausalNeighbourhood": [
        (CausalNeighbourhood(heads=4, kernel=5), 16), (CausalNeighbourhood(heads=2, kernel=3, dilation=4, head_dim=3), 8),
        (CausalNeighbourhood(heads=2, kernel=1, dilation=2), 8)],
    "ConvAttention": [
        (ConvAttention(heads=4, kernel=5, kv_stride=1), 16), (ConvAttention(heads=2, kernel=3, head_dim=3), 8)],
    "ConvChannelAttention": [
        (ConvChannelAttention(compress=2, squeeze=4), 16), (ConvChannelAttention(kernel=1, compress=4, scale=0.5), 12)],
    "DynamicLocalConv": [
        (DynamicLocalConv(heads=4, kernel=5), 16), (DynamicLocalConv(heads=2, kernel=3, reduction=20), 16),
        (DynamicLocalConv(heads=2, kernel=1, reduction=1), 8)],
    "HaloAttention": [
        (HaloAttention(heads=4, block=3, halo=2), 16), (HaloAttention(heads=2, block=2, halo=1, head_dim=3), 8),
        (HaloAttention(heads=4, block=3, halo=1, position="bias"), 16),
        (HaloAttention(heads=2, block=4, halo=0, position=None), 8)],
    "HaloBottleneck": [
        (HaloBottleneck(heads=4, head_dim=4, block=3, halo=2, values=1.5), 16),
        (HaloBottleneck(heads=2, head_dim=3, block=2, halo=0, position=None), 8),
        (HaloBottleneck(heads=2, head_dim=4, block=3, halo=1, position="bias"), 8)],
    "InterleavedAttention": [
        (InterleavedAttention(heads=4, window=2, kernel=5), 16),
        (InterleavedAttention(heads=2, window=3, kernel=None, head_dim=3), 8), (InterleavedAttention(heads=2, window=4), 8)],
    "NeighbourhoodAttention": [
        (NeighbourhoodAttention(heads=4, kernel=5), 16),
        (NeighbourhoodAttention(heads=2, kernel=3, dilation=2, head_dim=3), 8),
        (NeighbourhoodAttention(heads=2, kernel=3, dilation=3), 8)],
    "RecursiveAttention": [
        (RecursiveAttention(heads=4, stride=3, most=4), 16), (RecursiveAttention(heads=2, stride=2, most=2), 8),
        (RecursiveAttention(heads=2, ratio=0.8, most=3), 12)],
    "SimplifiedLinearAttention": [
        (SimplifiedLinearAttention(heads=4, window=3, shift=True, side=3), 16),
        (SimplifiedLinearAttention(heads=2, window=2, kernel=3, side=2, head_dim=3), 8),
        (SimplifiedLinearAttention(heads=2, kernel=3, side=3), 8)],
    "SpatialChannelCorrelation": [
        (SpatialChannelCorrelation(heads=2, window=4, base=2), 32),
        (SpatialChannelCorrelation(heads=1, window=3, base=1), 16),
        (SpatialChannelCorrelation(heads=2, window=2, head_dim=3, compress=2), 16)],
    "TokenAwarePooling": [(TokenAwarePooling(), 16), (TokenAwarePooling(ranges=2), 8), (TokenAwarePooling(ranges=1), 8)],
    "TransposedAttention": [
        (TransposedAttention(heads=4, kernel=5), 16), (TransposedAttention(heads=2, weights="softmax", head_dim=3), 8)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {
    "RecursiveAttention": {way: "the filters behind the recursion are 3 x 3" for way in ("tap_rows", "tap_columns")},
    "SpatialChannelCorrelation": {
        "tap_rows": "the small network's convolution is 3 x 3", "tap_columns": "the small network's convolution is 3 x 3",
        "offset": "an offset is two numbers"},
    "TokenAwarePooling": {way: "the convolutions that weigh are 3 x 3" for way in ("tap_rows", "tap_columns")},
}


def as_grid(x):
    return x[:, :, None] if x.ndim == 3 else x


def heads_of(x, weight, heads):
    return (x @ weight.T).unflatten(-1, (heads, -1))


def attended(q, keys, values, biases):
    """One query [B, K, P] against lists of keys and values [B, K, P], with a bias [K] or [B, K] for each."""
    scores = torch.stack([(q * k).sum(-1) / math.sqrt(q.shape[-1]) + b for k, b in zip(keys, biases, strict=True)], -1)
    weights = scores.softmax(-1)
    return sum(weights[..., i, None] * v for i, v in enumerate(values)).flatten(1)


def by_place(x, formula):
    """`formula(row, column)` at every place of a grid, in the shape of `x`."""
    rows, columns = as_grid(x).shape[1:3]
    return torch.stack([torch.stack([formula(r, c) for c in range(columns)], 1) for r in range(rows)], 1).reshape(
        *x.shape[:-1], -1)


def nearest(place, size, kernel, dilation):
    """The kernel nearest places with this remainder, ties and borders resolved by moving inward: by sorting."""
    line = [p for p in range(size) if p % dilation == place % dilation]
    at = line.index(place)
    start = min(max(at - kernel // 2, 0), max(len(line) - kernel, 0))
    return line[start:start + kernel]


def neighbourhood_attention(w, config, x):
    q, k, v = (heads_of(as_grid(x), w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    height, width, middle = *q.shape[1:3], config.kernel - 1

    def at(r, c):
        seen = [(i, j) for i in nearest(r, height, config.kernel, config.dilation)
                for j in nearest(c, width, config.kernel, config.dilation)]
        biases = [w["bias"][(r - i) // config.dilation + middle, (c - j) // config.dilation + middle] for i, j in seen]
        return attended(q[:, r, c], [k[:, i, j] for i, j in seen], [v[:, i, j] for i, j in seen], biases)

    return by_place(x, at) @ w["out.weight"].T


def halo_attention(w, config, x):
    return halo_values(w, config, x) @ w["out.weight"].T


def halo_values(w, config, x):
    q, k, v = (heads_of(as_grid(x), w[f"attention.{name}.weight"], config.heads) for name in ("query", "key", "value"))
    height, width, middle = *q.shape[1:3], config.block + config.halo - 1

    def around(place, size):
        start = place // config.block * config.block
        return range(max(start - config.halo, 0), min(start + config.block + config.halo, size))

    def position(query, down, across):
        if config.position == "bias":
            return w["attention.bias"][down + middle, across + middle]
        vector = w["attention.rows"][down + middle] + w["attention.columns"][across + middle] if config.position else 0
        return (query * vector).sum(-1) / math.sqrt(query.shape[-1])

    def at(r, c):
        seen = [(i, j) for i in around(r, height) for j in around(c, width)]
        biases = [position(q[:, r, c], r - i, c - j) for i, j in seen]
        return attended(q[:, r, c], [k[:, i, j] for i, j in seen], [v[:, i, j] for i, j in seen], biases)

    return by_place(x, at)


def halo_bottleneck(w, config, x):
    x = batch_norm(w, x @ w["reduce.weight"].T, "reduce_norm.").clamp(min=0)
    y = batch_norm(w, halo_values(w, config, x), "value_norm.").clamp(min=0)
    return batch_norm(w, y @ w["out.weight"].T, "out_norm.")


def batch_norm(w, x, prefix):
    if f"{prefix}weight" not in w:
        return x + w[f"{prefix}bias"]                                       # a folded one
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0)
    y = (rows - mean) / torch.sqrt(((rows - mean) ** 2).mean(0) + 1e-5)
    return (y * w[f"{prefix}weight"] + w[f"{prefix}bias"]).view(x.shape)


def depthwise(x, taps, stride=1):
    """One filter per channel, place by place, zeros outside: [B, H, W, D]."""
    half = taps.shape[-1] // 2
    height, width = x.shape[1:3]

    def at(r, c):
        return sum(taps[:, i, j] * x[:, r + i - half, c + j - half] for i in range(2 * half + 1) for j in range(2 * half + 1)
                   if 0 <= r + i - half < height and 0 <= c + j - half < width)

    return torch.stack([torch.stack([at(r, c) for c in range(0, width, stride)], 1) for r in range(0, height, stride)], 1)


def conv_attention(w, config, x):
    def projected(name, stride):
        y = batch_norm(w, depthwise(as_grid(x), w[f"{name}.taps"], stride), f"{name}.norm.")
        return heads_of(y.flatten(1, 2), w[f"{name}.project.weight"], config.heads)

    q, k, v = (projected(name, 1 if name == "query" else config.kv_stride) for name in ("query", "key", "value"))
    y = [attended(each, list(k.unbind(1)), list(v.unbind(1)), [0.0] * k.shape[1]) for each in q.unbind(1)]
    return (torch.stack(y, 1) @ w["out.weight"].T).view(x.shape)


def interleaved_attention(w, config, x):
    grid = as_grid(x)
    q, k, v = (heads_of(grid, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    height, width = grid.shape[1:3]
    apart = [-(-size // min(config.window, size)) for size in (height, width)]

    def at(r, c):
        seen = [(i, j) for i in range(height) for j in range(width) if (r - i) % apart[0] == (c - j) % apart[1] == 0]
        return attended(q[:, r, c], [k[:, i, j] for i, j in seen], [v[:, i, j] for i, j in seen], [0.0] * len(seen))

    y = by_place(x, at) @ w["out.weight"].T
    return y if config.kernel is None else y + depthwise(grid, w["conv.taps"]).view(x.shape)


def convolved(x, taps):
    """A full convolution place by place, zeros outside."""
    half = taps.shape[-1] // 2
    height, width = x.shape[1:3]

    def at(r, c):
        return sum(x[:, i, j] @ taps[:, :, i - r + half, j - c + half].T for i in range(r - half, r + half + 1)
                   for j in range(c - half, c + half + 1) if 0 <= i < height and 0 <= j < width)

    return by_place(x, at)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def conv_channel_attention(w, config, x):
    y = convolved(gelu(convolved(as_grid(x), w["compress"])), w["expand"])
    weight = ((y.mean((1, 2)) @ w["squeeze.weight"].T).clamp(min=0) @ w["restore.weight"].T).sigmoid()
    return (config.scale * y * weight[:, None, None]).view(x.shape)


def layer_norm(w, x, prefix):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * w[f"{prefix}weight"] + w[f"{prefix}bias"]


def recursive_attention(w, config, x):
    grid = small = as_grid(x)
    while max(small.shape[1:3]) >= config.most:
        cells, (rows, columns) = [], small.shape[1:3]
        for top in range(0, rows, config.stride):
            cells.append(torch.stack([sum(
                w["shrink"][:, i - top, j - left] * small[:, i, j] for i in range(top, min(top + config.stride, rows))
                for j in range(left, min(left + config.stride, columns))) for left in range(0, columns, config.stride)], 1))
        small = torch.stack(cells, 1)
    small = gelu(layer_norm(w, depthwise(small, w["local.taps"]) @ w["mix.weight"].T, "norm."))
    values = small @ w["value.weight"].T
    values = values + depthwise(values, w["position.taps"])
    q = heads_of(grid.flatten(1, 2), w["query.weight"], config.heads)
    k = heads_of(small.flatten(1, 2), w["key.weight"], config.heads)
    v = values.flatten(1, 2).unflatten(-1, (config.heads, -1))
    y = [attended(each, list(k.unbind(1)), list(v.unbind(1)), [0.0] * k.shape[1]) for each in q.unbind(1)]
    return (torch.stack(y, 1) @ w["out.weight"].T).view(x.shape)


def token_aware_pooling(w, config, x):
    grid = as_grid(x)
    height, width = grid.shape[1:3]
    scores = convolved(batch_norm(w, convolved(grid, w["first"]), "norm."), w["second"])
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)

    def at(r, c):
        means = [sum(grid[:, r + i * n, c + j * n] for i in (-1, 0, 1) for j in (-1, 0, 1)
                     if 0 <= r + i * n < height and 0 <= c + j * n < width) / 9 for n in range(config.ranges)]
        means[0] = grid[:, r, c]
        return sum(weights[:, r, c, n, None] * mean for n, mean in enumerate(means))

    return by_place(x, at)


def dynamic_local_conv(w, config, x):
    u = as_grid(x) @ w["input.weight"].T
    taps = depthwise(u @ w["reduce.weight"].T, w["conv.taps"]) @ w["taps.weight"].T
    taps = taps.unflatten(-1, (config.heads, config.kernel, config.kernel))
    heads, half = u.unflatten(-1, (config.heads, -1)), config.kernel // 2
    height, width = u.shape[1:3]

    def at(r, c):
        return sum(taps[:, r, c, :, i - r + half, j - c + half, None] * heads[:, i, j]
                   for i in range(r - half, r + half + 1) for j in range(c - half, c + half + 1)
                   if 0 <= i < height and 0 <= j < width).flatten(1)

    return by_place(x, at) @ w["out.weight"].T


def transposed_attention(w, config, x):
    q, k, v = (depthwise(as_grid(x) @ w[f"{name}.weight"].T, w[f"{name}_conv.taps"]).flatten(1, 2)
               .unflatten(-1, (config.heads, -1)) for name in ("query", "key", "value"))
    q, k = (each / each.square().sum(1, keepdim=True).sqrt() for each in (q, k))
    scores = torch.einsum("bthp,bthr->bhpr", q, k) * w["temperature"][:, None, None]
    weights = scores.clamp(min=0) if config.weights == "relu" else scores.softmax(-1)
    return (torch.einsum("bhpr,bthr->bthp", weights, v).flatten(2) @ w["out.weight"].T).view(x.shape)


def causal_neighbourhood(w, config, x):
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))

    def at(t):
        seen = [(step, t - step * config.dilation) for step in range(config.kernel) if t >= step * config.dilation]
        return attended(q[:, t], [k[:, s] for _, s in seen], [v[:, s] for _, s in seen],
                        [w["bias"][config.kernel - 1 - step] for step, _ in seen])

    return torch.stack([at(t) for t in range(x.shape[1])], 1) @ w["out.weight"].T


def spatial_channel_correlation(w, config, x):
    """Window by window over the places that exist, every pair with its own offset."""
    grid = as_grid(x)
    height, width = grid.shape[1:3]
    base = min(config.base, config.window)
    side = config.window // base

    def leaky(y):
        return torch.where(y > 0, y, 0.2 * y)

    small = leaky(convolved(leaky(grid @ w["compress.weight"].T), w["conv"]))
    q, v = ((small @ w["expand.weight"].T) * (grid @ w["gate.weight"].T)).chunk(2, -1)

    offsets = [(i, j) for i in range(1 - config.window, config.window) for j in range(1 - config.window, config.window)]
    biases = torch.tensor(offsets, dtype=x.dtype) @ w["offsets.first.weight"].T
    for i in range(3):
        biases = layer_norm(w, biases, f"offsets.norms.{i}.").clamp(min=0) @ w[f"offsets.layers.{i}.weight"].T
    table = dict(zip(offsets, biases.unbind(0), strict=True))

    def inside(place, size):
        start = place // config.window * config.window
        return range(start, min(start + config.window, size))

    def heads(y):
        return y.unflatten(-1, (config.heads, -1))

    def at(r, c):
        rows, columns = inside(r, height), inside(c, width)
        spatial = 0
        for i in range(base):
            for j in range(base):
                top, left = rows.start + i * side, columns.start + j * side
                cell = [(top + a, left + b, a, b) for a in range(side) for b in range(side)]
                there = [w["parts"][a, b] * v[:, m, n] for m, n, a, b in cell if m < height and n < width]
                part = heads(sum(there, torch.zeros_like(v[:, 0, 0])))
                score = (heads(q[:, r, c]) * part).sum(-1) / part.shape[-1]
                score = score + sum(table[r - m, c - n] for m, n, _, _ in cell) / side**2
                spatial = spatial + score[..., None] * part
        channels = sum(torch.einsum("be,bf,bf->be", q[:, m, n], v[:, m, n], v[:, r, c]) for m in rows for n in columns)
        return torch.cat([spatial.flatten(1), channels / config.window**2], -1)

    return by_place(x, at) @ w["out.weight"].T


def simplified_linear_attention(w, config, x):
    """Window by window and token by token, as the authors lay them out: a cyclic shift, and no mask."""
    grid = as_grid(x)
    _, height, width, _ = grid.shape
    q, k, v = (heads_of(grid, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))
    sides = (height, width) if config.window is None else (min(config.window, height), min(config.window, width))
    padded = [-(-size // side) * side for size, side in zip((height, width), sides, strict=True)]
    shifts = [side // 2 if config.shift and side < size else 0 for side, size in zip(sides, (height, width), strict=True)]
    place, reach = w["place"].unflatten(-1, (config.heads, -1)), config.kernel // 2

    def at(r, c):
        moved = [(place_of - shift) % size for place_of, shift, size in zip((r, c), shifts, padded, strict=True)]
        corner = [m - m % side for m, side in zip(moved, sides, strict=True)]
        inside = [m % side for m, side in zip(moved, sides, strict=True)]
        window = {}
        for i in range(sides[0]):
            for j in range(sides[1]):
                row, column = (corner[0] + i + shifts[0]) % padded[0], (corner[1] + j + shifts[1]) % padded[1]
                if row < height and column < width:
                    window[i, j] = row, column
        query, total, weight, local = q[:, r, c].clamp(min=0), 0, 1e-6, w["bias"]
        for (i, j), (row, column) in window.items():
            score = (query * (k[:, row, column] + place[i % config.side, j % config.side]).clamp(min=0)).sum(-1, keepdim=True)
            total, weight = total + score * v[:, row, column], weight + score
            down, across = i - inside[0] + reach, j - inside[1] + reach
            if 0 <= down < config.kernel and 0 <= across < config.kernel:
                local = local + w["taps"][:, down, across] * v[:, row, column]
        return (total / weight + local).flatten(1) @ w["out.weight"].T

    return by_place(x, at)


REFERENCES = {
    "SimplifiedLinearAttention": simplified_linear_attention,
    "CausalNeighbourhood": causal_neighbourhood, "SpatialChannelCorrelation": spatial_channel_correlation,
    "ConvChannelAttention": conv_channel_attention, "DynamicLocalConv": dynamic_local_conv,
    "InterleavedAttention": interleaved_attention, "RecursiveAttention": recursive_attention,
    "TokenAwarePooling": token_aware_pooling, "TransposedAttention": transposed_attention,
    "ConvAttention": conv_attention, "HaloAttention": halo_attention, "HaloBottleneck": halo_bottleneck,
    "NeighbourhoodAttention": neighbourhood_attention,
}
