"""Tokenisers of images, what reads a grid for scores, and the operators of their pyramids."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.conv_mlp import ConvMLP
from bodyplan.space.operators.conv_tokenizer import ConvTokenizer
from bodyplan.space.operators.linear_reduced import LinearReducedAttention
from bodyplan.space.operators.pooled_head import PooledHead

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "ConvMLP": [(ConvMLP(ratio=2, kernel=5), 16), (ConvMLP(ratio=1, kernel=3, rectified=True), 8)],
    "ConvTokenizer": [
        (ConvTokenizer(layers=3, between=6, kernel=5, image=(9, 6)), 16),
        (ConvTokenizer(layers=3, between=4, image=(4, 9), channels=1), 8),
        (ConvTokenizer(layers=2, between=4, stride=2, image=11, position="sine"), 8),
        (ConvTokenizer(image=6, kernel=1, channels=2, position=None), 7)],
    "LinearReducedAttention": [
        (LinearReducedAttention(heads=4, side=3), 16), (LinearReducedAttention(heads=2, side=2, head_dim=3), 8),
        (LinearReducedAttention(heads=2, side=1), 8)],
    "PooledHead": [
        (PooledHead(classes=10, pool="power", groups=4), 16), (PooledHead(classes=3, pool="power", power=2, eps=1e-3), 8),
        (PooledHead(classes=3, pool="attention"), 8), (PooledHead(classes=5, pool="max"), 16),
        (PooledHead(classes=3, pool="class"), 16), (PooledHead(classes=3), 16)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {
    "PooledHead": {"weight": "a token has one weight"},
}


def as_grid(x):
    return x[:, :, None] if x.ndim == 3 else x


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(w, x, prefix="norm."):
    mean = x.mean(-1, keepdim=True)
    scaled = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
    return scaled * w[f"{prefix}weight"] + w[f"{prefix}bias"]


def filtered(taps, x, stride=1, before=None):
    """One filter per channel, place by place; `before`: zeros above and left of the grid."""
    rows, columns = x.shape[1:3]
    side = taps.shape[-1]
    before = side // 2 if before is None else before

    def at(r, c):
        found = torch.zeros_like(x[:, 0, 0])
        for i in range(side):
            for j in range(side):
                y, z = r * stride + i - before, c * stride + j - before
                if 0 <= y < rows and 0 <= z < columns:
                    found = found + taps[:, i, j] * x[:, y, z]
        return found

    return torch.stack([torch.stack([at(r, c) for c in range(-(-columns // stride))], 1)
                        for r in range(-(-rows // stride))], 1)


def attention(w, config, queries, keys, prefix=""):
    """Softmax attention of one list of tokens to another, head by head."""
    q, k, v = (tokens @ w[f"{prefix}{name}.weight"].T for name, tokens in (
        ("query", queries), ("key", keys), ("value", keys)))
    size, found = q.shape[-1] // config.heads, []
    for h in range(config.heads):
        part = slice(h * size, (h + 1) * size)
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(-1)
        found.append(weights @ v[..., part])
    return torch.cat(found, -1) @ w[f"{prefix}out.weight"].T


def conv_mlp(w, config, x):
    h = as_grid(x) @ w["up.weight"].T
    h = h.clamp(min=0) if config.rectified else h
    return (gelu(filtered(w["conv.taps"], h)) @ w["down.weight"].T).view(x.shape)


def linear_reduced_attention(w, config, x):
    grid = as_grid(x)

    def share(i, size):
        return range(i * size // config.side, -(-(i + 1) * size // config.side))

    cells = []
    for i in range(config.side):
        for j in range(config.side):
            found = [grid[:, r, c] for r in share(i, grid.shape[1]) for c in share(j, grid.shape[2])]
            cells.append(sum(found) / len(found))
    small = gelu(layer_norm(w, torch.stack(cells, 1) @ w["mix.weight"].T))
    return attention(w, config, grid.flatten(1, 2), small).view(x.shape)


def convolved(weight, x, stride=1):
    """Over channels-last pixels, place by place, the middle of the window at every `stride`-th place."""
    rows, columns = x.shape[1:3]
    side = weight.shape[-1]

    def at(r, c):
        found = 0
        for i in range(side):
            for j in range(side):
                y, z = r + i - side // 2, c + j - side // 2
                if 0 <= y < rows and 0 <= z < columns:
                    found = found + x[:, y, z] @ weight[:, :, i, j].T
        return found

    return torch.stack([torch.stack([at(r, c) for c in range(0, columns, stride)], 1) for r in range(0, rows, stride)], 1)


def largest_of_nine(x):
    """Of the places around every second one."""
    rows, columns = x.shape[1:3]

    def at(r, c):
        found = [x[:, y, z] for y in range(r - 1, r + 2) for z in range(c - 1, c + 2) if 0 <= y < rows and 0 <= z < columns]
        return torch.stack(found).amax(0)

    return torch.stack([torch.stack([at(r, c) for c in range(0, columns, 2)], 1) for r in range(0, rows, 2)], 1)


def sines(places, width, like):
    table = [[(math.sin if i % 2 == 0 else math.cos)(p / 10000 ** (2 * (i // 2) / width)) for i in range(width)]
             for p in range(places)]
    return like.new_tensor(table)


def conv_tokenizer(w, config, pixels):
    x = pixels.permute(0, 2, 3, 1)
    for i in range(config.layers):
        x = largest_of_nine(convolved(w[f"layers.{config.layers}_{i}.weight"], x, config.stride).clamp(min=0))
    x = x.flatten(1, 2)
    if config.position == "learned":
        return x + w["places"].flatten(0, 1)
    return x + sines(*x.shape[1:], x) if config.position else x


def pooled_head(w, config, x):
    if config.pool == "mean":
        z = sum(x.unbind(1)) / x.shape[1]
    elif config.pool == "max":
        z = x.amax(1)
    elif config.pool == "class":
        z = x[:, 0]
    elif config.pool == "attention":
        z = torch.einsum("bt,btd->bd", (x @ w["weigh.weight"][0]).softmax(-1), x)
    else:
        size, found = x.shape[-1] // config.groups, []
        for c in range(x.shape[-1]):
            p = w["power"][c // size]
            found.append((x[..., c].clamp(min=config.eps) ** p).mean(1) ** (1 / p))
        z = torch.stack(found, -1)
    return z @ w["scores.weight"].T + w["scores.bias"]


REFERENCES = {
    "ConvMLP": conv_mlp,
    "ConvTokenizer": conv_tokenizer,
    "LinearReducedAttention": linear_reduced_attention,
    "PooledHead": pooled_head,
}
