"""Linear attention and its kin: constant and gated decays, kernels, agents, hashes, and what replaces attention."""

from __future__ import annotations

import bodyplan as bp
import torch
import torch.nn.functional as F
from bodyplan.space.operator import Operator

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS"]


def heads_of(x, weights, name, heads):
    return F.linear(x, weights[f"{name}.weight"]).unflatten(-1, (heads, -1))


def mapped(x, kind):
    """The feature map, entry by entry."""
    if kind == "elu":
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())
    if kind == "relu":
        return x.clamp_min(0)
    if kind == "silu":
        return x * torch.sigmoid(x)
    if kind == "softmax":
        return x.exp() / x.exp().sum(-1, keepdim=True)
    return x


def kernel(q, k, kind):
    """Products of the features of every query with every key: [B, H, T, S]."""
    s = torch.einsum("bthk,bshk->bhts", q, k)
    if kind == "taylor":
        s = s / q.shape[-1] ** 0.5
        return 1 + s + s * s / 2
    return torch.einsum("bthk,bshk->bhts", mapped(q, kind), mapped(k, kind))


def linear_attention(weights, config, x):
    q, k, v = (heads_of(x, weights, name, config.heads) for name in ("query", "key", "value"))
    a = kernel(q, k, config.feature)
    a = a if config.bidirectional else a.tril()
    if config.normalise:
        a = a / (a.sum(-1, keepdim=True) + 1e-6)
    o = torch.einsum("bhts,bshv->bthv", a, v)
    if config.output_norm:
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["norm.weight"]
    return F.linear(o.flatten(2), weights["out.weight"])


def turned(x, base=10000.0):
    """Rotary positions by complex numbers."""
    half = x.shape[-1] // 2
    time = torch.arange(x.shape[1], dtype=x.dtype)
    angle = time[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], -1)


DECAYS = {"retnet": lambda h, heads: 1 - 2.0 ** (-5 - h), "linear": lambda h, heads: 2.718281828459045 ** (-8 * h / heads),
          "geometric": lambda h, heads: 2.718281828459045 ** -(2 ** (-8 * (h + 1) / heads))}


def decayed(weights, config, x):
    """All pairs: decay^(t - s) q_t . k_s, with the angle between them."""
    heads, length = config.heads, x.shape[1]
    q, k, v = (heads_of(x, weights, name, heads) for name in ("query", "key", "value"))
    q, k = mapped(q, config.feature), mapped(k, config.feature)
    apart = torch.arange(length)[:, None] - torch.arange(length)
    if config.position == "lrpe":
        angle = apart[:, :, None, None] * weights["frequency"]
        s = torch.einsum("bthk,bshk,tshk->bhts", q, k, angle.cos())
    else:
        q, k = (turned(q), turned(k)) if config.position == "rotary" else (q, k)
        s = torch.einsum("bthk,bshk->bhts", q, k)
    rate = [DECAYS[config.decay](h, heads) if isinstance(config.decay, str) else config.decay[h] for h in range(heads)]
    rate = torch.tensor(rate, dtype=x.dtype)[:, None, None] ** config.decay_scale
    s = (s * rate ** apart.clamp_min(0)).tril()
    is_retention = isinstance(config, bp.Retention)
    o = torch.einsum("bhts,bshv->bthv", s, v) * (q.shape[-1] ** -0.5 if is_retention else 1)
    o = o.flatten(2) if config.norm == "all" else o
    o = o - o.mean(-1, keepdim=True) if config.norm == "layer" else o
    o = o / (o.square().mean(-1, keepdim=True) + (1e-5 if config.norm == "layer" else 1e-6)).sqrt()
    o = o if config.norm == "all" else o.flatten(2)
    if config.gate:
        u = F.linear(x, weights["gate.weight"])
        o = o * (u * torch.sigmoid(u) if is_retention else u)
    return F.linear(o, weights["out.weight"])


def gla(weights, config, x):
    """One token at a time."""
    q, k, v = (heads_of(x, weights, name, config.heads) for name in ("query", "key", "value"))
    logit = F.linear(F.linear(x, weights["decay_down.weight"]), weights["decay_up.weight"], weights["decay_up.bias"])
    o = gated(q, k, v, torch.sigmoid(logit).unflatten(-1, (config.heads, -1)) ** (1 / config.temperature))
    o = o * q.shape[-1] ** -0.5
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["norm.weight"]
    o = o.flatten(2)
    if config.gate:
        u = F.linear(x, weights["gate.weight"])
        o = o * u * torch.sigmoid(u)
    return F.linear(o, weights["out.weight"])


def gated(q, k, v, a):
    memory, outputs = 0.0, []
    for t in range(q.shape[1]):
        memory = a[:, t, :, :, None] * memory + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, :, None] * memory).sum(-2))
    return torch.stack(outputs, 1)


def liger(weights, config, x):
    kv_heads = config.kv_heads or config.heads
    q, k, v = (heads_of(x, weights, name, n) for name, n in (("query", config.heads), ("key", kv_heads), ("value", kv_heads)))
    k, v = (torch.stack([each[:, :, h * kv_heads // config.heads] for h in range(config.heads)], 2) for each in (k, v))
    far = gated(mapped(q, "softmax"), mapped(k, "softmax"), v, torch.sigmoid(k) ** (1 / config.temperature))
    q, k = turned(q, config.rope_base), turned(k, config.rope_base)
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    s = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    s = s.masked_fill((apart < 0) | (apart >= config.window), -torch.inf).softmax(-1)
    near = torch.einsum("bhts,bshv->bthv", s, v)
    return F.linear((config.mix * far + (1 - config.mix) * near).flatten(2), weights["out.weight"])


def aaren(weights, config, x):
    """A softmax over every prefix."""
    k, v = (heads_of(x, weights, name, config.heads) for name in ("key", "value"))
    s = torch.einsum("bthk,hk->bth", k, weights["query"]) / k.shape[-1] ** 0.5
    o = [(s[:, :t].softmax(1)[..., None] * v[:, :t]).sum(1) for t in range(1, x.shape[1] + 1)]
    return F.linear(torch.stack(o, 1).flatten(2), weights["out.weight"])


EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "LinearAttention": [
        (bp.LinearAttention(heads=4), 32), (bp.LinearAttention(heads=2, key_dim=6, feature="softmax"), 24),
        (bp.LinearAttention(heads=2, head_dim=4, feature="relu", bidirectional=True), 16),
        (bp.LinearAttention(heads=2, feature="identity", normalise=False, output_norm=True), 16),
        (bp.LinearAttention(heads=1, key_dim=4, feature="taylor", output_norm=True), 24)],
    "Based": [(bp.Based(heads=4, key_dim=4), 32), (bp.Based(heads=2, key_dim=3, head_dim=6), 16)],
    "Retention": [
        (bp.Retention(heads=4), 32), (bp.Retention(heads=2, key_dim=6, expand_v=1, norm="rms"), 16),
        (bp.Retention(heads=2, decay=(0.5, 1.0), decay_scale=0.5, gate=False), 24),
        (bp.Retention(heads=2, position=None, norm="all", decay="geometric"), 16),
        (bp.Retention(heads=1, position="lrpe"), 8)],
    "Lightning": [
        (bp.Lightning(heads=4), 32), (bp.Lightning(heads=2, position="rotary", decay="geometric", decay_scale=0.25), 24),
        (bp.Lightning(heads=2, head_dim=6, position=None, feature="identity", norm="rms", gate=False), 16),
        (bp.Lightning(heads=2, decay=(1.0, 0.1)), 16)],
    "GLA": [(bp.GLA(heads=4), 32), (bp.GLA(heads=2, expand_k=1, expand_v=2, rank=3, temperature=4, gate=False), 16)],
    "Liger": [
        (bp.Liger(heads=4, kv_heads=2, window=5), 32), (bp.Liger(heads=2, head_dim=4, mix=0.25, temperature=2), 16),
        (bp.Liger(heads=2, kv_heads=1, window=1, rope_base=100.0), 24)],
    "Aaren": [(bp.Aaren(heads=4), 32), (bp.Aaren(heads=2, head_dim=6, key_dim=3), 16)],
}

UNVARIED: dict[str, dict[str, str]] = {
    "Retention": {"half": "a rotary pair is two numbers"},
    "Lightning": {"half": "a rotary pair is two numbers"},
    "Liger": {"half": "a rotary pair is two numbers"},
}

UNVARIED_OPTIONS: dict[str, dict[str, str]] = {}

REFERENCES = {"LinearAttention": linear_attention, "Based": linear_attention, "Retention": decayed, "Lightning": decayed,
              "GLA": gla, "Liger": liger, "Aaren": aaren}
