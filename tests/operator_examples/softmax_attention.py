"""Softmax attention and its relatives, with references in loops over pairs of tokens."""

from __future__ import annotations

import math
from typing import Any

import bodyplan as bp
import torch
from bodyplan.space.operator import Operator
from bodyplan.testing import Reference

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "Attention": [
        (bp.Attention(heads=4, kv_heads=2, qk_norm=True), 32), (bp.Attention(heads=4, kv_heads=2, window=5), 32),
        (bp.Attention(heads=4, kv_heads=2, rotary=False, qk_norm=True), 32),
        (bp.Attention(heads=2, bidirectional=True, window=4), 32), (bp.Attention(heads=2, value_residual=True), 24),
        (bp.Attention(heads=2, head_dim=4, window=1, rope_base=100.0), 16),
        (bp.Attention(heads=2, kv_heads=1, head_dim=6), 24),
        (bp.Attention(heads=4, kv_heads=2, position="t5", reach=20, buckets=8, persistent=3, gate="head"), 16),
        (bp.Attention(heads=2, position="fire", position_hidden=5, persistent=2, gate="channel", temperature=True), 16),
        (bp.Attention(heads=2, position="fire", position_hidden=8, clip_gamma=-0.05, clip_zeta=1.02), 16),
        (bp.Attention(heads=2, position="t5", reach=12, buckets=4, sink=True, window=6), 16),
        (bp.Attention(heads=2, kv_heads=1, position="m4", reach=6, qkv_conv=3), 16),
        (bp.Attention(heads=2, position="m3", reach=4, qkv_conv=2, symmetric=True, shaped=0.5), 8),
        (bp.Attention(heads=2, position="transformer_xl", weights="relu_norm"), 8),
    ],
}

UNVARIED: dict[str, dict[str, str]] = {
    "Attention": {"half": "a rotary pair is two numbers", "terms": "own values, and those of the first layer",
                  "one": "a distance is one number"},
}

UNVARIED_OPTIONS: dict[str, dict[str, str]] = {
    "Attention": {"reuse_kv": "needs the attention layer before it: run by the residual topologies"},
}


# -- Attention ------------------------------------------------------------------------------------------------------------

def rms(x: Any, gain: Any) -> Any:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def turned(x_BTHP: Any, base: float) -> Any:
    """Rotary positions as complex numbers."""
    length, half = x_BTHP.shape[1], x_BTHP.shape[-1] // 2
    angle = torch.tensor([[t * base ** (-i / half) for i in range(half)] for t in range(length)], dtype=torch.float64)
    z = torch.complex(x_BTHP[..., :half], x_BTHP[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], -1)


def filtered(x: Any, taps: Any, both: bool) -> Any:
    """Tap by tap."""
    ahead = taps.shape[1] // 2 if both else 0
    rows = []
    for t in range(x.shape[1]):
        places = [(j, t + j - taps.shape[1] + 1 + ahead) for j in range(taps.shape[1])]
        rows.append(sum(taps[:, j] * x[:, at] for j, at in places if 0 <= at < x.shape[1]))
    return torch.stack(rows, 1)


def t5_bucket(distance: int, buckets: int, reach: int, both: bool) -> int:
    """Raffel et al.'s formula; keys after the query in the second half."""
    first = 0
    if both:
        buckets //= 2
        first, distance = (buckets if distance < 0 else 0), abs(distance)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    grown = math.log(distance / exact) / math.log(reach / exact) * (buckets - exact)
    return first + min(exact + int(grown + 1e-9), buckets - 1)


def alibi_slopes(heads: int) -> list[float]:
    if math.log2(heads).is_integer():
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(power) + alibi_slopes(2 * power)[0::2][:heads - power]


def term(w: Any, config: Any, h: int, t: int, s: int, q: Any, k: Any, width: int) -> Any:
    """The score of one pair from unscaled q and k, [B, P] each."""
    size, far, group = q.shape[-1], config.reach - 1, h // (config.heads // (config.kv_heads or config.heads))
    scale = size**-0.5 if config.shaped is None else 1 / (config.shaped * math.sqrt(width * size))
    plain, kind, both = (q * k).sum(-1), config.position, config.bidirectional
    clipped = max(min(t - s, far), -far)
    entry = clipped + far if both else abs(clipped)
    if kind == "alibi":
        return plain * scale - alibi_slopes(config.heads)[h] * abs(t - s)
    if kind == "t5":
        return plain * scale + w["position.bucket_bias"][t5_bucket(t - s, config.buckets, config.reach, both), h]
    if kind == "fire":
        c, least = w["position.curve"].abs(), (w["position.threshold"] * config.reach).abs()
        most = torch.maximum(torch.full_like(least, t), least)
        share = torch.log(c * (t - s) + 1) / (torch.log(c * most + 1) + 1e-6)
        f = torch.relu(w["position.hidden.weight"] @ share + w["position.hidden.bias"])
        return plain * scale + (w["position.out.weight"] @ f + w["position.out.bias"])[h]
    if kind == "m1":
        return plain * scale * w["position.by_distance"][abs(clipped)]
    if kind == "m2":
        return plain * scale * w["position.by_offset"][entry]
    if kind == "m3":
        return (q * k * w["position.factors"][entry]).sum(-1) * scale
    if kind == "m4":
        a = w["position.vectors"][entry]
        return ((q * k) + q * a + k * a).sum(-1) * scale
    if kind == "transformer_xl":
        angle = [(t - s) / 10000 ** (i / width) for i in range(0, width, 2)]
        wave = torch.tensor([math.sin(a) for a in angle] + [math.cos(a) for a in angle], dtype=torch.float64)[:width]
        r = (w["position.distance.weight"] @ wave)[group * size:(group + 1) * size]
        u, v = w["position.key_bias"][h], w["position.distance_bias"][h]
        return (((q + u) * k).sum(-1) + ((q + v) * r).sum(-1)) * scale
    return plain * scale


def attention(w: Any, config: Any, x: Any) -> Any:
    """Pair by pair; run by the tests of this family, since mixed values need a dictionary to share."""
    (batch, length, width), (groups, per_group, size) = x.shape, config.sizes(x.shape[-1])
    q, k, v = (x @ w[f"{n}.weight"].T if f"{n}.weight" in w else None for n in ("query", "key", "value"))
    if config.qkv_conv:
        q = None if q is None else filtered(q, w["query_taps"], config.bidirectional)
        k, v = filtered(k, w["key_taps"], config.bidirectional), filtered(v, w["value_taps"], config.bidirectional)
    q = (k if config.symmetric else q).view(batch, length, config.heads, size)
    k, v = (part.view(batch, length, groups, size) for part in (k, v))
    if config.qk_norm:
        q, k = rms(q, w["query_norm.weight"]), rms(k, w["key_norm.weight"])
    if config.rotary and config.position == "rotary":
        q, k = turned(q, config.rope_base), turned(k, config.rope_base)
    if config.value_residual:
        v = w["mix"][0] * v + w["mix"][1] * v
    if config.temperature:
        q = q / w["log_temperature"].exp()[:, None]
    rows = [torch.cat([one_output(w, config, h, t, q, k[:, :, h // per_group], v[:, :, h // per_group], width)
                       for h in range(config.heads)], -1) for t in range(length)]
    y = torch.stack(rows, 1)
    if config.weights == "relu_norm":
        mean = y.mean(-1, keepdim=True)
        y = (y - mean) / torch.sqrt(((y - mean) ** 2).mean(-1, keepdim=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    if config.gate == "head":
        gate = torch.sigmoid(x @ w["head_gate.weight"].T + w["head_gate.bias"])
        y = (y.view(batch, length, config.heads, size) * gate[..., None]).flatten(2)
    if config.gate == "channel":
        y = y * torch.sigmoid(x @ w["channel_gate.weight"].T + w["channel_gate.bias"])
    return y @ w["out.weight"].T


def one_output(w: Any, config: Any, h: int, t: int, q: Any, k: Any, v: Any, width: int) -> Any:
    """Head h at token t: [B, P]."""
    reach = config.window or q.shape[1]
    seen = [s for s in range(q.shape[1]) if abs(t - s) < reach and (config.bidirectional or s <= t)]
    scores = [term(w, config, h, t, s, q[:, t, h], k[:, s], width) for s in seen]
    values = [v[:, s] for s in seen]
    group = h // (config.heads // (config.kv_heads or config.heads))
    for n in range(config.persistent):
        scores.append((q[:, t, h] * w["persistent_key"][group, n]).sum(-1) * q.shape[-1] ** -0.5)
        values.append(w["persistent_value"][group, n].expand(len(q), -1))
    score = torch.stack(scores, -1)
    if config.weights == "relu_norm":
        return (torch.relu(score)[..., None] * torch.stack(values, 1)).sum(1)
    total = score.exp().sum(-1, keepdim=True) + (w["sink"][h].exp() if config.sink else 0)
    weight = ((config.clip_zeta - config.clip_gamma) * score.exp() / total + config.clip_gamma).clamp(0, 1)
    y = (weight[..., None] * torch.stack(values, 1)).sum(1)
    return y if config.shaped is None else y + v[:, t] - v[:, seen].mean(1)


REFERENCES: dict[str, Reference] = {}
