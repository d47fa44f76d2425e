"""Convolutions, pooling and token MLPs beside attention on grids, and what such networks begin with."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.channel_scale import ChannelScale
from bodyplan.space.operators.conv_stem import ConvStem
from bodyplan.space.operators.cross_covariance import CrossCovarianceAttention
from bodyplan.space.operators.depthwise_mlp import DepthwiseMLP
from bodyplan.space.operators.dfc_attention import DFCAttention
from bodyplan.space.operators.frame_conv import FrameConvEmbedding
from bodyplan.space.operators.fused_mobile_conv import FusedMobileConv
from bodyplan.space.operators.ghost import GhostUnit
from bodyplan.space.operators.inception_mixer import InceptionMixer
from bodyplan.space.operators.multi_group_conv import MultiGroupConv
from bodyplan.space.operators.multi_head_conv import MultiHeadConv
from bodyplan.space.operators.nin_gate import NiNGate
from bodyplan.space.operators.pooled_attention import PooledAttention
from bodyplan.space.operators.raft_mlp import RaftMLP
from bodyplan.space.operators.split_depthwise import SDTA
from bodyplan.space.operators.squeeze_excite import SqueezeExcite
from bodyplan.space.operators.squeezeformer_conv import SqueezeformerConv
from bodyplan.space.operators.subspace_attention import SubspaceAttention
from bodyplan.space.operators.token_mlp import TokenMLP

from .windows import as_grid, attended, batch_norm, by_place, convolved, depthwise, gelu, heads_of

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "ChannelScale": [(ChannelScale(), 16), (ChannelScale(), 8)],
    "ConvStem": [
        (ConvStem(patch=4, channels=3, image=16), 16), (ConvStem(patch=8, channels=3, image=16, activation="silu"), 8),
        (ConvStem(patch=2, channels=1, image=(8, 12), activation="relu", last=True), 8),
        (ConvStem(patch=4, channels=1, image=8, folded=True), 12)],
    "CrossCovarianceAttention": [
        (CrossCovarianceAttention(heads=4), 32), (CrossCovarianceAttention(heads=2, head_dim=5), 24)],
    "DepthwiseMLP": [(DepthwiseMLP(kernel=5), 16), (DepthwiseMLP(ratio=2), 8),
                     (DepthwiseMLP(ratio=1, reduction=None), 8), (DepthwiseMLP(kernel=3, folded=True), 12)],
    "DFCAttention": [(DFCAttention(kernel=5), 16), (DFCAttention(kernel=3), 8), (DFCAttention(kernel=3, folded=True), 12)],
    "FrameConvEmbedding": [(FrameConvEmbedding(features=12), 16), (FrameConvEmbedding(features=8), 8)],
    "FusedMobileConv": [(FusedMobileConv(kernel=5, expand=3), 16), (FusedMobileConv(expand=2), 8),
                        (FusedMobileConv(kernel=1, expand=1, squeeze=False), 12),
                        (FusedMobileConv(kernel=3, expand=2, folded=True), 12)],
    "GhostUnit": [(GhostUnit(expand=2, kernel=5, squeeze=True), 16), (GhostUnit(expand=1.5, gate=3, squeeze=True), 9),
                  (GhostUnit(gate=None), 8), (GhostUnit(expand=2, folded=True), 12)],
    "InceptionMixer": [
        (InceptionMixer(heads=2, head_dim=4), 16), (InceptionMixer(heads=1, head_dim=4, pool=1), 16),
        (InceptionMixer(heads=1, head_dim=3, pool=3), 9)],
    "MultiHeadConv": [(MultiHeadConv(head_dim=8, kernel=5), 16), (MultiHeadConv(head_dim=4), 12),
                      (MultiHeadConv(head_dim=4, folded=True), 8)],
    "NiNGate": [(NiNGate(max_len=128, hidden=16), 16), (NiNGate(max_len=100, hidden=5, ratio=1), 8)],
    "PooledAttention": [(PooledAttention(heads=4), 16), (PooledAttention(heads=2, reduction=3, head_dim=3), 8),
                        (PooledAttention(heads=2, reduction=1), 8)],
    "RaftMLP": [(RaftMLP(side=6, raft=4), 16), (RaftMLP(side=3, raft=2, ratio=1, along="columns"), 8),
                (RaftMLP(side=4, raft=1), 6)],
    "MultiGroupConv": [
        (MultiGroupConv(branches=((5, 4), (1, 2), (3, 1))), 16),
        (MultiGroupConv(branches=((3, 4), (3, 2), (1, 1)), activation="silu", identity=False), 8),
        (MultiGroupConv(branches=((5, 4), (1, 2)), activation=None, folded=True), 16),
        (MultiGroupConv(branches=((3, 2),), activation="gelu", folded=True), 8)],
    "SDTA": [(SDTA(heads=4, position=True, layer_scale=0.5), 16), (SDTA(heads=4, splits=3, ratio=2), 16),
             (SDTA(heads=2, splits=4, head_dim=3), 9)],
    "SqueezeExcite": [(SqueezeExcite(reduction=4), 16), (SqueezeExcite(reduction=2, activation="gelu", gate="hard"), 12),
                      (SqueezeExcite(activation="silu"), 8)],
    "SqueezeformerConv": [(SqueezeformerConv(kernel=7), 16), (SqueezeformerConv(kernel=3, expand=1), 8),
                          (SqueezeformerConv(kernel=3, folded=True), 12)],
    "SubspaceAttention": [(SubspaceAttention(groups=4), 16), (SubspaceAttention(groups=2), 8),
                          (SubspaceAttention(groups=1), 6)],
    "TokenMLP": [(TokenMLP(max_len=128, hidden=16), 16), (TokenMLP(max_len=100, hidden=5), 8)],
}

# Axes that have one size in every network: operator, axis -> why.
SQUARE = ("tap_rows", "tap_columns")
UNVARIED: dict[str, dict[str, str]] = {
    "ConvStem": {way: "the convolutions are 3 x 3" for way in SQUARE} | {"stem1": "only a patch of 8 has it"},
    "FrameConvEmbedding": {way: "the convolutions are 3 x 3" for way in SQUARE},
    "GhostUnit": {"ghost": "a channel and its ghost"},
    "InceptionMixer": {way: "the filters are 3 x 3" for way in SQUARE},
    "MultiGroupConv": {f"branch_1_{way}": "1 x 1 kernels beside larger ones" for way in ("rows", "columns")},
    "SDTA": {way: "the filters are 3 x 3" for way in SQUARE} | {"waves": "as many numbers describe every place"},
}
UNVARIED_OPTIONS: dict[str, dict[str, str]] = {}


def multi_group_conv(w, config, x):
    grid, width = as_grid(x), x.shape[-1]

    def dense(taps, groups):
        count, size = width // groups, taps.shape[-1]
        found = torch.zeros(width, width, size, size, dtype=x.dtype)
        for o in range(width):
            found[o, o // count * count:(o // count + 1) * count] = taps[o]
        return found

    if config.folded:
        y = convolved(grid, dense(w["weight"], config.groups)) + w["bias"]
    else:
        y = sum(batch_norm(w, convolved(grid, dense(w[f"weights.{i}"], groups)), f"norms.{i}.")
                for i, (_, groups) in enumerate(config.branches))
        y = y + batch_norm(w, grid, "norm.") if config.identity else y
    act = {"relu": lambda h: h.clamp(min=0), "gelu": gelu, "silu": lambda h: h / (1 + torch.exp(-h)), None: lambda h: h}
    return act[config.activation](y).view(x.shape)


def weighed(w, x, prefix, activation, gate):
    """Squeeze and excitation over all but the first and last dimension."""
    mean = x.flatten(1, -2).mean(1)
    s = mean @ w[f"{prefix}squeeze.weight"].T + w[f"{prefix}squeeze.bias"]
    s = {"relu": s.clamp(min=0), "silu": s / (1 + (-s).exp()), "gelu": gelu(s)}[activation]
    z = s @ w[f"{prefix}restore.weight"].T + w[f"{prefix}restore.bias"]
    z = ((z + 3).clamp(0, 6) / 6) if gate == "hard" else 1 / (1 + (-z).exp())
    return torch.stack([each * weight for each, weight in zip(x, z, strict=True)])


def squeeze_excite(w, config, x):
    return weighed(w, x, "", config.activation, config.gate)


def silu(x):
    return x / (1 + (-x).exp())


def fused_mobile_conv(w, config, x):
    h = silu(batch_norm(w, convolved(as_grid(x), w["weight"]), "norm."))
    h = weighed(w, h, "weigh.", "silu", "sigmoid") if config.squeeze else h
    return batch_norm(w, h @ w["down.weight"].T, "down_norm.").view(x.shape)


def cross_covariance(w, config, x, prefix=""):
    """Channel by channel: its cosines with those of its head, then a mixture of their values."""
    q, k, v = (heads_of(x, w[f"{prefix}{name}.weight"], config.heads) for name in ("query", "key", "value"))
    out = []
    for head in range(config.heads):
        qs, ks, vs = ([each[:, :, head, p] for p in range(each.shape[-1])] for each in (q, k, v))
        for a in qs:
            cosine = torch.stack([(a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) for b in ks], -1)
            weight = (cosine * w[f"{prefix}temperature"][head]).softmax(-1)
            out.append(sum(weight[:, i, None] * c for i, c in enumerate(vs)))
    return torch.stack(out, -1) @ w[f"{prefix}out.weight"].T


def layer_norm(w, x, prefix, eps=1e-6):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w[f"{prefix}weight"] + w[f"{prefix}bias"]


def sdta(w, config, x):
    grid = as_grid(x)
    splits = [list(range(s, grid.shape[-1], config.splits)) for s in range(config.splits)]
    done, before = torch.zeros_like(grid), None
    for s, channels in enumerate(splits[:-1]):
        part = torch.zeros(*grid.shape[:3], w["taps"].shape[1], dtype=x.dtype)
        part[..., :len(channels)] = grid[..., channels]
        before = depthwise(part if before is None else part + before, w["taps"][s])
        done[..., channels] = before[..., :len(channels)]
    done[..., splits[-1]] = grid[..., splits[-1]]
    if config.position:
        height, width = grid.shape[1:3]

        def described(place, size):
            angle = [2 * math.pi * (place + 1) / size / 10000 ** (2 * (n // 2) / 32) for n in range(32)]
            return [math.cos(a) if n % 2 else math.sin(a) for n, a in enumerate(angle)]

        table = torch.tensor([[described(r, height) + described(c, width) for c in range(width)] for r in range(height)],
                             dtype=x.dtype)
        done = done + table @ w["position.weight"].T
    tokens = done.flatten(1, 2)
    y = cross_covariance(w, config, layer_norm(w, tokens, "attention_norm."), "attention.")
    tokens = tokens + y * w.get("attention_scale", 1.0)
    y = gelu(layer_norm(w, tokens, "norm.") @ w["up.weight"].T) @ w["down.weight"].T * w.get("scale", 1.0)
    return y.view(x.shape)


def squares(x, side):
    """Means of squares: {(row, column): [B, D]}."""
    height, width = x.shape[1:3]
    cells = {}
    for r in range(height):
        for c in range(width):
            cells.setdefault((r // side, c // side), []).append(x[:, r, c])
    return {key: sum(cell) / len(cell) for key, cell in cells.items()}


def inception_mixer(w, config, x):
    grid = as_grid(x)
    inner = config.heads * config.head_dim
    height, width = grid.shape[1:3]
    small = squares(grid[..., :inner], config.pool)
    q, k, v = ({key: heads_of(mean, w[f"{name}.weight"], config.heads) for key, mean in small.items()}
               for name in ("query", "key", "value"))
    seen = {key: attended(q[key], list(k.values()), list(v.values()), [0.0] * len(k)) for key in q}
    low = by_place(x, lambda r, c: seen[r // config.pool, c // config.pool])
    rest = grid[..., inner:]
    conv = gelu(depthwise(rest[..., ::2] @ w["widen.weight"].T, w["conv.taps"]))

    def highest(r, c):
        near = [rest[:, i, j, 1::2] for i in range(max(r - 1, 0), min(r + 2, height))
                for j in range(max(c - 1, 0), min(c + 2, width))]
        return torch.stack(near).amax(0)

    high = gelu(as_grid(by_place(x, highest)) @ w["maxima.weight"].T)
    every = torch.cat([as_grid(low), conv, high], -1)
    return ((every + depthwise(every, w["fuse.taps"])) @ w["out.weight"].T).view(x.shape)


def multi_head_conv(w, config, x):
    heads = [convolved(part, weight) for part, weight in zip(as_grid(x).split(config.head_dim, -1),
                                                             w["weight"].split(config.head_dim, 0), strict=True)]
    return (batch_norm(w, torch.cat([as_grid(h) if h.ndim == 3 else h for h in heads], -1), "norm.").clamp(min=0)
            @ w["out.weight"].T).view(x.shape)


def pooled_attention(w, config, x):
    grid = as_grid(x)
    small = torch.stack(list(squares(grid, config.reduction).values()), 1)
    small = small if config.reduction == 1 else batch_norm(w, small, "norm.")
    q = heads_of(grid.flatten(1, 2), w["query.weight"], config.heads)
    k, v = (heads_of(small, w[f"{name}.weight"], config.heads) for name in ("key", "value"))
    y = [attended(each, list(k.unbind(1)), list(v.unbind(1)), [0.0] * k.shape[1]) for each in q.unbind(1)]
    return (torch.stack(y, 1) @ w["out.weight"].T).view(x.shape)


def bicubic(line, places):
    """A list of tensors as another number of them: Keys' cubic with a = -0.75, the ends held."""
    def cubic(t):
        t, a = abs(t), -0.75
        return ((a + 2) * t**3 - (a + 3) * t**2 + 1) if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    made = []
    for i in range(places):
        at = (i + 0.5) * len(line) / places - 0.5
        first = math.floor(at) - 1
        made.append(sum(cubic(at - j) * line[min(max(j, 0), len(line) - 1)] for j in range(first, first + 4)))
    return made


def raft_mlp(w, config, x):
    grid = as_grid(x) if config.along == "rows" else as_grid(x).transpose(1, 2)
    columns = []
    for c in range(grid.shape[2]):
        line = list(grid[:, :, c].unbind(1))
        line = torch.stack(bicubic(line, config.side) if len(line) != config.side else line, 1)
        out = []
        for raft in line.split(config.raft, -1):
            h = gelu(sum(raft[:, s, r, None] * w["up"][:, s, r] for s in range(config.side) for r in range(config.raft)))
            out.append(torch.stack([h @ w["down"][s].T for s in range(config.side)], 1))
        line = list(torch.cat(out, -1).unbind(1))
        columns.append(torch.stack(bicubic(line, grid.shape[1]) if grid.shape[1] != config.side else line, 1))
    y = torch.stack(columns, 2)
    return (y if config.along == "rows" else y.transpose(1, 2)).reshape(x.shape)


def long_range_gate(w, grid, prefix):
    """At every place of the grid."""
    height, width = grid.shape[1:3]
    small = squares(grid, 2)
    rows, columns = (1 + max(key[i] for key in small) for i in (0, 1))
    g = torch.stack([torch.stack([small[r, c] for c in range(columns)], 1) for r in range(rows)], 1)
    g = batch_norm(w, g @ w[f"{prefix}project.weight"].T, f"{prefix}project_norm.")
    taps = torch.zeros(len(w[f"{prefix}across"]), *2 * (w[f"{prefix}across"].shape[1],), dtype=grid.dtype)
    half = taps.shape[-1] // 2
    across, along = taps.clone(), taps.clone()
    across[:, half] = w[f"{prefix}across"]
    along[:, :, half] = w[f"{prefix}along"]
    g = batch_norm(w, depthwise(g, across), f"{prefix}across_norm.")
    g = 1 / (1 + (-batch_norm(w, depthwise(g, along), f"{prefix}along_norm.")).exp())
    return torch.stack([torch.stack([g[:, r // 2, c // 2] for c in range(width)], 1) for r in range(height)], 1)


def dfc_attention(w, config, x):
    return (as_grid(x) * long_range_gate(w, as_grid(x), "gate.")).view(x.shape)


def ghosts(w, x, prefix, rectified, channels):
    first = batch_norm(w, x @ w[f"{prefix}primary.weight"].T, f"{prefix}primary_norm.")
    first = first.clamp(min=0) if rectified else first
    ghost = batch_norm(w, depthwise(first, w[f"{prefix}cheap.taps"]), f"{prefix}cheap_norm.")
    ghost = ghost.clamp(min=0) if rectified else ghost
    return torch.stack([(ghost if i % 2 else first)[..., i // 2] for i in range(channels)], -1)


def ghost_unit(w, config, x):
    grid = as_grid(x)
    h = ghosts(w, grid, "expand.", True, 2 * len(w["expand.primary.weight"]))
    h = h if config.gate is None else h * long_range_gate(w, grid, "gate.")
    h = weighed(w, h, "weigh.", "relu", "hard") if config.squeeze else h
    return ghosts(w, h, "project.", False, x.shape[-1]).view(x.shape)


def subspace_attention(w, config, x):
    grid = as_grid(x)
    height, width = grid.shape[1:3]
    h = batch_norm(w, grid * w["scale"], "norm.").clamp(min=0)
    out = torch.zeros_like(grid)

    def highest(r, c, channels):
        return torch.stack([h[:, i, j, channels] for i in range(max(r - 1, 0), min(r + 2, height))
                            for j in range(max(c - 1, 0), min(c + 2, width))]).amax(0)

    scores = []
    for group in range(config.groups):
        channels = list(range(group, grid.shape[-1], config.groups))
        scores.append(torch.stack([torch.stack([highest(r, c, channels) @ w["point"][channels] for c in range(width)], 1)
                                   for r in range(height)], 1))
    scores = batch_norm(w, torch.stack(scores, -1), "point_norm.").clamp(min=0)
    for group in range(config.groups):
        part = scores[..., group].exp()
        weight = part / part.sum((1, 2), keepdim=True)
        out[..., group::config.groups] = grid[..., group::config.groups] * weight[..., None]
    return out.view(x.shape)


def tokens_mixed(up, down, x):
    """Every channel by itself, zeros after the end."""
    padded = torch.zeros(x.shape[0], up.shape[1], x.shape[2], dtype=x.dtype)
    padded[:, :x.shape[1]] = x
    return torch.stack([gelu(padded[..., d] @ up.T) @ down.T for d in range(x.shape[2])], -1)[:, :x.shape[1]]


def token_mlp(w, config, x):
    return tokens_mixed(w["up"], w["down"], x)


def nin_gate(w, config, x):
    m = x + tokens_mixed(w["token_up"], w["token_down"], layer_norm(w, x, "token_norm.", 1e-5))
    m = m + gelu(layer_norm(w, m, "norm.", 1e-5) @ w["up.weight"].T) @ w["down.weight"].T
    return (x @ w["project.weight"].T) * m


def depthwise_mlp(w, config, x):
    h = gelu(batch_norm(w, as_grid(x) @ w["up.weight"].T, "up_norm."))
    h = h + gelu(batch_norm(w, depthwise(h, w["conv.taps"]), "conv_norm."))
    y = batch_norm(w, h @ w["down.weight"].T, "down_norm.")
    return (y if config.reduction is None else weighed(w, y, "weigh.", "gelu", "sigmoid")).view(x.shape)


def squeezeformer_conv(w, config, x):
    h, half = silu(x @ w["input.weight"].T), config.kernel // 2
    y = torch.stack([sum(w["taps"][:, i] * h[:, t + i - half] for i in range(config.kernel) if 0 <= t + i - half < h.shape[1])
                     for t in range(h.shape[1])], 1)
    return silu(batch_norm(w, y, "norm.")) @ w["out.weight"].T


REFERENCES = {
    "CrossCovarianceAttention": cross_covariance, "DepthwiseMLP": depthwise_mlp, "DFCAttention": dfc_attention,
    "FusedMobileConv": fused_mobile_conv, "GhostUnit": ghost_unit, "InceptionMixer": inception_mixer,
    "MultiGroupConv": multi_group_conv,
    "MultiHeadConv": multi_head_conv, "NiNGate": nin_gate, "PooledAttention": pooled_attention, "RaftMLP": raft_mlp,
    "SDTA": sdta, "SqueezeExcite": squeeze_excite, "SqueezeformerConv": squeezeformer_conv,
    "SubspaceAttention": subspace_attention, "TokenMLP": token_mlp,
}
