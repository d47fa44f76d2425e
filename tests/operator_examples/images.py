"""Tokenisers of images, what reads a grid for scores, and the operators of their pyramids."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.conv_mlp import ConvMLP
from bodyplan.space.operators.linear_reduced import LinearReducedAttention

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "ConvMLP": [(ConvMLP(ratio=2, kernel=5), 16), (ConvMLP(ratio=1, kernel=3, rectified=True), 8)],
    "LinearReducedAttention": [
        (LinearReducedAttention(heads=4, side=3), 16), (LinearReducedAttention(heads=2, side=2, head_dim=3), 8),
        (LinearReducedAttention(heads=2, side=1), 8)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {}


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


REFERENCES = {
    "ConvMLP": conv_mlp,
    "LinearReducedAttention": linear_reduced_attention,
}
