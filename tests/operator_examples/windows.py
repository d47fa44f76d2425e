"""Attention in windows and neighbourhoods of a grid, and what is built around them."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.conv_attention import ConvAttention
from bodyplan.space.operators.halo_attention import HaloAttention
from bodyplan.space.operators.halo_bottleneck import HaloBottleneck
from bodyplan.space.operators.neighbourhood_attention import NeighbourhoodAttention

__all__ = ["EXAMPLES", "REFERENCES"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "ConvAttention": [
        (ConvAttention(heads=4, kernel=5, kv_stride=1), 16), (ConvAttention(heads=2, kernel=3, head_dim=3), 8)],
    "HaloAttention": [
        (HaloAttention(heads=4, block=3, halo=2), 16), (HaloAttention(heads=2, block=2, halo=1, head_dim=3), 8),
        (HaloAttention(heads=4, block=3, halo=1, position="bias"), 16),
        (HaloAttention(heads=2, block=4, halo=0, position=None), 8)],
    "HaloBottleneck": [
        (HaloBottleneck(heads=4, head_dim=4, block=3, halo=2, values=1.5), 16),
        (HaloBottleneck(heads=2, head_dim=3, block=2, halo=0, position=None), 8),
        (HaloBottleneck(heads=2, head_dim=4, block=3, halo=1, position="bias"), 8)],
    "NeighbourhoodAttention": [
        (NeighbourhoodAttention(heads=4, kernel=5), 16),
        (NeighbourhoodAttention(heads=2, kernel=3, dilation=2, head_dim=3), 8),
        (NeighbourhoodAttention(heads=2, kernel=3, dilation=3), 8)],
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


REFERENCES = {
    "ConvAttention": conv_attention, "HaloAttention": halo_attention, "HaloBottleneck": halo_bottleneck,
    "NeighbourhoodAttention": neighbourhood_attention,
}
