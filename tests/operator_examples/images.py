"""Tokenisers of images, what reads a grid for scores, and the operators of their pyramids."""

from __future__ import annotations

import math

import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.compression_stem import CompressionStem
from bodyplan.space.operators.conv_mlp import ConvMLP
from bodyplan.space.operators.conv_tokenizer import ConvTokenizer
from bodyplan.space.operators.dense_head import DenseHead
from bodyplan.space.operators.latent_embedding import LatentEmbedding
from bodyplan.space.operators.linear_reduced import LinearReducedAttention
from bodyplan.space.operators.local_value_attention import LocalValueAttention
from bodyplan.space.operators.pooled_head import PooledHead
from bodyplan.space.operators.pooling_attention import PoolingAttention
from bodyplan.space.operators.tokens_to_token import TokensToToken
from bodyplan.space.operators.tube_embedding import TubeEmbedding

from .neurons import spiked

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "ConvMLP": [(ConvMLP(ratio=2, kernel=5), 16), (ConvMLP(ratio=1, kernel=3, rectified=True), 8)],
    "ConvTokenizer": [
        (ConvTokenizer(layers=3, between=6, kernel=5, image=(9, 6)), 16),
        (ConvTokenizer(layers=3, between=4, image=(4, 9), channels=1), 8),
        (ConvTokenizer(layers=2, between=4, stride=2, image=11, position="sine"), 8),
        (ConvTokenizer(image=6, kernel=1, channels=2, position=None), 7)],
    "CompressionStem": [
        (CompressionStem(image=16, halvings=3, hidden=5, latent=6), 16),
        (CompressionStem(image=(8, 16), channels=1, halvings=2, hidden=3, latent=4), 8),
        (CompressionStem(image=16, halvings=3, hidden=4, latent=3), 8)],
    "DenseHead": [(DenseHead(classes=5, hidden=6), 16), (DenseHead(classes=3, hidden=4, up=2), 8), (DenseHead(classes=1), 8)],
    "LatentEmbedding": [(LatentEmbedding(channels=3, image=(5, 7), kernel=5), 16), (LatentEmbedding(image=4), 8),
                        (LatentEmbedding(image=6, kernel=1), 12)],
    "LinearReducedAttention": [
        (LinearReducedAttention(heads=4, side=3), 16), (LinearReducedAttention(heads=2, side=2, head_dim=3), 8),
        (LinearReducedAttention(heads=2, side=1), 8)],
    "LocalValueAttention": [
        (LocalValueAttention(heads=4, kernel=5), 16), (LocalValueAttention(heads=2, head_dim=3), 8)],
    "PooledHead": [
        (PooledHead(classes=10, pool="power", groups=4), 16), (PooledHead(classes=3, pool="power", power=2, eps=1e-3), 8),
        (PooledHead(classes=3, pool="attention"), 8), (PooledHead(classes=5, pool="max"), 16),
        (PooledHead(classes=3, pool="class"), 16), (PooledHead(classes=3), 16), (PooledHead(classes=4, spiking=True), 16)],
    "PoolingAttention": [
        (PoolingAttention(heads=4, kernel=5, kv_stride=1), 16), (PoolingAttention(heads=2, kv_stride=3, head_dim=3), 8),
        (PoolingAttention(heads=2, pool="max"), 8), (PoolingAttention(heads=2, pool="mean", kernel=1), 8)],
    "TokensToToken": [
        (TokensToToken(image=8, kernels=(5, 3), strides=(2, 2), token_dim=8), 16),
        (TokensToToken(image=(6, 9), channels=2, kernels=(3, 2), strides=(2, 2), token_dim=5, class_token=True), 8),
        (TokensToToken(image=6, kernels=(3, 2), strides=(1, 2), token_dim=4, lift=1, position=None), 8),
        (TokensToToken(image=9, kernels=(3, 2, 2), strides=(2, 2, 2), token_dim=6, mixer="transformer"), 8),
        (TokensToToken(image=4, kernels=(3,), strides=(2,)), 8)],
    "TubeEmbedding": [
        (TubeEmbedding(patch=2, image=(4, 6), frames=4, kernel=3, tube_kernel=3), 16),
        (TubeEmbedding(patch=3, image=3, frames=3, tube=3, channels=1, position=False, class_token=True), 8),
        (TubeEmbedding(patch=2, image=2, frames=2, tube=2, channels=2), 8)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {
    "CompressionStem": {f"{way}_of_{side}": f"its convolutions are {side} x {side}"
                        for way in ("rows", "columns") for side in (3, 5)},
    "DenseHead": {way: "the convolution is 3 x 3" for way in ("tap_rows", "tap_columns")},
    "PooledHead": {"weight": "a token has one weight"},
    "PoolingAttention": {"tap_frames": "an image has one frame; of videos in test_images.py"},
}
# Options that no example varies: operator, option -> why.
UNVARIED_OPTIONS: dict[str, dict[str, str]] = {
    "PoolingAttention": {option: "not every grid is a video or has a class token: see test_images.py"
                         for option in ("frames", "class_token", "rows")},
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


def local_value_attention(w, config, x):
    grid = as_grid(x)
    values = grid @ w["value.weight"].T
    size, near = values.shape[-1] // config.heads, []
    for h in range(config.heads):
        near.append(filtered(w["taps"], values[..., h * size:(h + 1) * size]))
    plain = attention(w, config, grid.flatten(1, 2), grid.flatten(1, 2))
    return (plain + torch.cat(near, -1).flatten(1, 2) @ w["out.weight"].T).view(x.shape)


def split_softly(x, kernel, stride):
    """Windows of a grid [B, H, W, C]: [B, H', W', C * kernel * kernel], channels first among a window's entries."""
    before = []
    for size in x.shape[1:3]:
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        before.append(min((kernel - stride + 1) // 2, total) if kernel > stride else 0)

    def at(r, c):
        entries = [[x[:, y, z] if 0 <= y < x.shape[1] and 0 <= z < x.shape[2] else torch.zeros_like(x[:, 0, 0])
                    for z in range(c - before[1], c - before[1] + kernel)]
                   for y in range(r - before[0], r - before[0] + kernel)]
        return torch.stack([torch.stack(row, -1) for row in entries], -2).flatten(1)

    return torch.stack([torch.stack([at(r, c) for c in range(0, x.shape[2], stride)], 1)
                        for r in range(0, x.shape[1], stride)], 1)


def tokens_to_token(w, config, pixels):
    splits = len(config.kernels)
    x = split_softly(pixels.permute(0, 2, 3, 1), config.kernels[0], config.strides[0])
    for i in range(splits - 1):
        at, grid = f"layers.{splits}_{i}.", x.shape[1:3]
        u = layer_norm(w, x.flatten(1, 2), f"{at}norm.")
        q, k, v = (u @ w[f"{at}{name}.weight"].T for name in ("query", "key", "value"))
        if config.mixer == "transformer":
            weights = (q @ k.mT / math.sqrt(config.token_dim)).softmax(-1)
        else:
            features = w[f"{at}random_features"]
            phi = [torch.exp(y @ features.T - (y**2).sum(-1, keepdim=True) / 2) / math.sqrt(len(features)) for y in (q, k)]
            weights = phi[0] @ phi[1].mT
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
        y = v + (weights @ v) @ w[f"{at}out.weight"].T
        z = layer_norm(w, y, f"{at}mlp_norm.")
        y = y + gelu(z @ w[f"{at}mlp.up.weight"].T) @ w[f"{at}mlp.down.weight"].T
        x = split_softly(y.unflatten(1, grid), config.kernels[i + 1], config.strides[i + 1])
    x = x.flatten(1, 2) @ w[f"project.{splits}.weight"].T
    x = torch.cat([w["token"].expand(len(x), 1, -1), x], 1) if config.class_token else x
    return x + sines(*x.shape[1:], x) if config.position else x


def volumes(config, x):
    """(class tokens [B, N, ...], frames [B, F, H, W, ...]) of what an operator with frames or a class token is given."""
    if getattr(config, "class_token", False):
        rows = config.frames * (config.rows or math.isqrt((x.shape[1] - 1) // config.frames))
        return x[:, :1], x[:, 1:].unflatten(1, (config.frames, rows // config.frames, -1))
    return x.flatten(1, -2)[:, :0], as_grid(x).unflatten(1, (config.frames, -1))


def pooled_places(x, stride, kernel, pool):
    """`pool` of [(offsets, vector)] around every `stride`-th row and column of every frame, as a list of places."""
    frames, rows, columns = x.shape[1:4]
    over_time, side = kernel
    found = []
    for f in range(frames):
        for r in range(0, rows, stride):
            for c in range(0, columns, stride):
                seen = []
                for a in range(over_time):
                    for i in range(side):
                        for j in range(side):
                            g, y, z = f + a - over_time // 2, r + i - side // 2, c + j - side // 2
                            if 0 <= g < frames and 0 <= y < rows and 0 <= z < columns:
                                seen.append(((a, i, j), x[:, g, y, z]))
                found.append(pool(seen))
    return torch.stack(found, 1)


def pooling_attention(w, config, x, stride=1, prefix=""):
    """Projections, then pooling, then attention, head by head; queries at `stride`."""
    first, frames = volumes(config, x)
    kernel = (config.kernel if config.frames > 1 else 1, config.kernel)

    def part(name, step):
        size = w[f"{prefix}{name}.weight"].shape[0] // config.heads
        heads = []
        for h in range(config.heads):
            matrix = w[f"{prefix}{name}.weight"][h * size:(h + 1) * size].T
            token, places = first @ matrix, frames @ matrix
            if (name == "query" and step == 1) or (step == 1 and config.kernel == 1):
                heads.append(torch.cat([token, places.flatten(1, 3)], 1))
                continue
            taps = w.get(f"{prefix}{name}_pool.taps")
            pools = {"conv": lambda seen, taps=taps: sum(taps[(slice(None), *at)] * value for at, value in seen),
                     "max": lambda seen: torch.stack([value for _, value in seen]).amax(0),
                     "mean": lambda seen: sum(value for _, value in seen) / (kernel[0] * kernel[1]**2)}
            together = torch.cat([token, pooled_places(places, step, kernel, pools[config.pool])], 1)
            heads.append(layer_norm(w, together, f"{prefix}{name}_pool.norm.") if config.pool == "conv" else together)
        return heads

    found = [(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v for q, k, v in zip(
        part("query", stride), part("key", config.kv_stride), part("value", config.kv_stride), strict=True)]
    return torch.cat(found, -1) @ w[f"{prefix}out.weight"].T


def pooling_attention_in_place(w, config, x):
    return pooling_attention(w, config, x).view(x.shape)


def multiscale_layer(w, config, x):
    """What comes out, as a sequence."""
    u = layer_norm(w, x)
    first, frames = volumes(config, x)
    kept = torch.cat([first, frames.flatten(1, 3)], 1)
    if config.stride > 1:
        total = [max(0, (-(-size // config.stride) - 1) * config.stride + config.stride + 1 - size)
                 for size in frames.shape[2:4]]
        before = [min(1, both) for both in total]
        places = []
        for f in range(config.frames):
            for r in range(0, frames.shape[2], config.stride):
                for c in range(0, frames.shape[3], config.stride):
                    seen = [frames[:, f, y, z] for y in range(r - before[0], r - before[0] + config.stride + 1)
                            for z in range(c - before[1], c - before[1] + config.stride + 1)
                            if 0 <= y < frames.shape[2] and 0 <= z < frames.shape[3]]
                    places.append(torch.stack(seen).amax(0))
        kept = torch.cat([first, torch.stack(places, 1)], 1)
    y = kept + pooling_attention(w, config, u, config.stride, "attention.")
    z = layer_norm(w, y, "mlp_norm.")
    kept = z @ w["project.weight"].T if "project.weight" in w else y
    return kept + gelu(z @ w["up.weight"].T) @ w.get("down.weight", w.get("widen.weight")).T


def tube_embedding(w, config, video):
    step, kernel = (config.tube, config.patch, config.patch), w["weight"].shape[2:]
    places = []
    before = [min((k - s + 1) // 2, max(0, (n // s - 1) * s + k - n)) if k > s else 0
              for k, s, n in zip(kernel, step, video.shape[2:], strict=True)]
    for f in range(0, video.shape[2], step[0]):
        for r in range(0, video.shape[3], step[1]):
            for c in range(0, video.shape[4], step[2]):
                total = 0
                for a in range(kernel[0]):
                    for i in range(kernel[1]):
                        for j in range(kernel[2]):
                            at = f + a - before[0], r + i - before[1], c + j - before[2]
                            if all(0 <= p < n for p, n in zip(at, video.shape[2:], strict=True)):
                                total = total + video[(slice(None), slice(None), *at)] @ w["weight"][:, :, a, i, j].T
                if config.position:
                    total = total + w["position"][r // step[1], c // step[2]] + w["frame_position"][f // step[0]]
                places.append(total)
    x = torch.stack(places, 1)
    if config.class_token:
        return torch.cat([w["token"].expand(len(x), 1, -1), x], 1)
    return x.unflatten(1, (-1, video.shape[4] // step[2]))


def compression_stem(w, config, pixels):
    x = pixels.permute(0, 2, 3, 1)
    for i in range(config.halvings):
        x = convolved(w[f"convs.{config.halvings}_{i}"], x, 2)
        if i + 1 < config.halvings:
            at = f"norms.{config.halvings}_{i}."
            energy = sum((w[f"{at}gain"][:, j] ** 2) * x[..., j:j + 1] ** 2 for j in range(x.shape[-1]))
            x = x / torch.sqrt(w[f"{at}offset"] ** 2 + energy)
    return convolved(w["reshape"], x, 2)


def between(x, up):
    """Bilinear, the corners staying where they are: along rows, then along columns."""
    for dim in (1, 2):
        size, found = x.shape[dim], []
        for r in range(up * size):
            at = r * (size - 1) / (up * size - 1) if size > 1 else 0.0
            low = min(int(at), size - 1)
            high = min(low + 1, size - 1)
            found.append(x.select(dim, low) * (1 - at + low) + x.select(dim, high) * (at - low))
        x = torch.stack(found, dim)
    return x


def dense_head(w, config, x):
    y = as_grid(x)
    y = convolved(w["conv"], y) if config.hidden else y
    y = between(y, config.up) if config.up > 1 else y
    scores = "hidden_scores" if config.hidden else "scores"
    y = (y.clamp(min=0) if config.hidden else y) @ w[f"{scores}.weight"].T + w[f"{scores}.bias"]
    return y[:, :, 0] if x.ndim == 3 else y


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
    if config.spiking:
        x = spiked(w, x.flatten(1, -2), "spikes.")
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


def latent_embedding(w, config, latents):
    """Tap by tap, zeros around."""
    padded = torch.nn.functional.pad(latents, (config.kernel // 2,) * 4)
    y = w["bias"][None, :, None, None]
    for i in range(config.kernel):
        for j in range(config.kernel):
            window = padded[:, :, i:i + latents.shape[2], j:j + latents.shape[3]]
            y = y + torch.einsum("dc,bchw->bdhw", w["weight"][:, :, i, j], window)
    return y.permute(0, 2, 3, 1)


REFERENCES = {
    "CompressionStem": compression_stem,
    "ConvMLP": conv_mlp,
    "DenseHead": dense_head,
    "ConvTokenizer": conv_tokenizer,
    "LatentEmbedding": latent_embedding,
    "LinearReducedAttention": linear_reduced_attention,
    "LocalValueAttention": local_value_attention,
    "PooledHead": pooled_head,
    "PoolingAttention": pooling_attention_in_place,
    "TokensToToken": tokens_to_token,
    "TubeEmbedding": tube_embedding,
}
