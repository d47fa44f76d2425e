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
        (bp.Attention(heads=2, value_residual="identity", sub_norm=True), 24),
        (bp.Attention(heads=4, kv_heads=2, cache=bp.Keyformer(budget=9, prompt=12)), 16),
        (bp.Attention(heads=2, cache=bp.RecentTokens(budget=6, sinks=2)), 16),
        (bp.Attention(heads=2, head_dim=4, window=1, rope_base=100.0), 16),
        (bp.Attention(heads=2, kv_heads=1, head_dim=6), 24),
        (bp.Attention(heads=4, kv_heads=2, position="t5", reach=20, buckets=8, persistent=3, gate="head"), 16),
        (bp.Attention(heads=2, position="fire", position_hidden=5, persistent=2, gate="channel", temperature=True), 16),
        (bp.Attention(heads=2, position="fire", position_hidden=8, clip_gamma=-0.05, clip_zeta=1.02), 16),
        (bp.Attention(heads=2, position="t5", reach=12, buckets=4, sink=True, window=6), 16),
        (bp.Attention(heads=2, kv_heads=1, position="m4", reach=6, qkv_conv=3), 16),
        (bp.Attention(heads=2, position="m3", reach=4, qkv_conv=2, symmetric=True, shaped=0.5), 8),
        (bp.Attention(heads=2, position="transformer_xl", weights="relu_norm"), 16),
        (bp.Attention(heads=2, position="transformer_xl"), 8),
    ],
    "Activator": [(bp.Activator(ratio=3), 16), (bp.Activator(ratio=2), 8)],
    "ChannelAttention": [(bp.ChannelAttention(reach=120, query_dim=6), 16),
                         (bp.ChannelAttention(reach=100, query_dim=4), 8)],
    "SplitAttention": [
        (bp.SplitAttention(heads=2, kernel=5), 16),
        (bp.SplitAttention(heads=1, kernel=4, bidirectional=False, rotary=True), 24),
        (bp.SplitAttention(heads=2, share=0.25, head_dim=2, kernel=3), 8)],
    "DilatedFSMN": [(bp.DilatedFSMN(channels=12, order=4, layers=3, kernel=5), 16),
                    (bp.DilatedFSMN(channels=6, order=2, layers=2, kernel=3), 8)],
    "FcaAttention": [(bp.FcaAttention(heads=4, side=5), 16), (bp.FcaAttention(heads=2, side=3, stride=2, head_dim=3), 8)],
    "TokenEnhancement": [
        (bp.TokenEnhancement(kernel=5, merge=3, stride=2), 16), (bp.TokenEnhancement(kernel=3), 8)],
    "ForwardCrossAttention": [
        (bp.ForwardCrossAttention(heads=4), 16), (bp.ForwardCrossAttention(heads=2, kernel=3, stride=2, head_dim=3), 8)],
    "GINAttention": [
        (bp.GINAttention(heads=4), 16), (bp.GINAttention(heads=2, ratio=1, threshold=0.1, rotary=False), 8),
        (bp.GINAttention(heads=2, head_dim=6, threshold=0.05), 12)],
    "GatedAttentionUnit": [
        (bp.GatedAttentionUnit(chunk=8, query_dim=12, kernel=5, rotary=3), 16),
        (bp.GatedAttentionUnit(chunk=5, query_dim=6, ratio=1, kernel=3, shift=False, rotary=0), 8)],
    "LayerMixAttention": [
        (bp.LayerMixAttention(heads=4, kv_heads=2, window=5), 16), (bp.LayerMixAttention(heads=2, kv_heads=1), 8),
        (bp.LayerMixAttention(heads=2, rotary=False), 8),
        (bp.LayerMixAttention(heads=2, head_dim=6), 24)],
    "ManhattanAttention": [
        (bp.ManhattanAttention(heads=4), 16),
        (bp.ManhattanAttention(heads=2, decompose=False, kernel=3, first=1.0, span=3.0), 8),
        (bp.ManhattanAttention(heads=2, inside=True, rotary=False, head_dim=6), 8)],
    "MixtureOfHeads": [
        (bp.MixtureOfHeads(heads=8, shared_heads=2, top_k=3), 32),
        (bp.MixtureOfHeads(heads=4, shared_heads=1, top_k=1, window=5), 16),
        (bp.MixtureOfHeads(heads=3, shared_heads=1, top_k=2, head_dim=6, bidirectional=True, rotary=False), 24)],
    "PointerHead": [(bp.PointerHead(hidden=12), 16), (bp.PointerHead(hidden=6, backwards=True), 8)],
    "PositionalAttention": [
        (bp.PositionalAttention(heads=4), 16), (bp.PositionalAttention(heads=2, strength=0.5, head_dim=5), 8)],
    "SingleHeadAttention": [(bp.SingleHeadAttention(query_dim=6), 24), (bp.SingleHeadAttention(ratio=0.5, query_dim=4), 6)],
    "SkipAttention": [
        (bp.SkipAttention(heads=4, kv_heads=4, window=5), 16), (bp.SkipAttention(heads=4, kv_heads=2, rotary=False), 8),
        (bp.SkipAttention(heads=2, head_dim=6, skipped=0, offset=1), 24)],
    "CrossViewAttention": [(bp.CrossViewAttention(heads=4), 16), (bp.CrossViewAttention(heads=2, views=3, head_dim=3), 8)],
    "SphericalAttention": [
        (bp.SphericalAttention(heads=4), 16), (bp.SphericalAttention(heads=2, grid="equiangular", radius=1.2), 8),
        (bp.SphericalAttention(heads=2, head_dim=3, radius=0.5), 8)],
}

UNVARIED: dict[str, dict[str, str]] = {
    "Attention": {"half": "a rotary pair is two numbers", "terms": "own values, and those of the first layer",
                  "one": "a distance is one number"},
    "DilatedFSMN": {"one": "a slope"},
    "GINAttention": {"half": "a rotary pair is two numbers"},
    "GatedAttentionUnit": {"uses": "two queries, two keys", "gates": "two gates"},
    "SplitAttention": {"half": "a rotary pair is two numbers"},
    "LayerMixAttention": {"half": "a rotary pair is two numbers"},
    "ManhattanAttention": {"half": "a rotary pair is two numbers"},
    "MixtureOfHeads": {"half": "a rotary pair is two numbers", "kinds": "shared heads and routed ones"},
    "SkipAttention": {"half": "a rotary pair is two numbers"},
    "PointerHead": {"one": "a score is one number"},
    "PositionalAttention": {"offsets": "rows, columns, and their squares"},
}

UNVARIED_OPTIONS: dict[str, dict[str, str]] = {
    "Attention": {"reuse_kv": "needs the attention layer before it: run by the residual topologies",
                  "separate": "needs the streams that a stack hands on: run by the residual topologies",
                  "subsample": "draws at random in training, where the contract compares runs: test_subsampled_attention"},
    "FcaAttention": {"before": "needs the layers before it: run by their stacks", "stride": "of the layers before it"},
    "TokenEnhancement": {"tells": "needs what reads its tokens: run by their stacks", "merge": "of the tokens that it tells",
                         "stride": "of the tokens that it tells"},
    "ForwardCrossAttention": {"before": "needs the layers before it: run by their stacks"},
    "LayerMixAttention": {"before": "needs the layers before it: run by their stacks"},
    "SkipAttention": {"before": "needs the layers before it: run by their stacks"},
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
    if config.value_residual is True:
        v = w["mix"][0] * v + w["mix"][1] * v
    if config.temperature:
        q = q / w["log_temperature"].exp()[:, None]
    rows = [torch.cat([one_output(w, config, h, t, q, k[:, :, h // per_group], v[:, :, h // per_group], width)
                       for h in range(config.heads)], -1) for t in range(length)]
    y = torch.stack(rows, 1)
    for norm in ["norm"] * (config.weights == "relu_norm") + ["sub_norm"] * bool(config.sub_norm):
        mean = y.mean(-1, keepdim=True)
        spread = torch.sqrt(((y - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
        y = (y - mean) / spread * w[f"{norm}.weight"] + w[f"{norm}.bias"]
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


# -- relatives ------------------------------------------------------------------------------------------------------------

def linear(w: Any, name: str, x: Any) -> Any:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def normed(w: Any, name: str, x: Any) -> Any:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def heads_of(w: Any, x: Any, heads: int, rotary: bool) -> Any:
    q, k, v = (linear(w, name, x).unflatten(-1, (heads, -1)) for name in ("query", "key", "value"))
    return (turned(q, 10000.0), turned(k, 10000.0), v) if rotary else (q, k, v)


def weights_at(q: Any, k: Any, t: int, seen: list[int]) -> Any:
    """Softmax over the visible keys of token t: [B, H, seen]."""
    scores = torch.stack([(q[:, t] * k[:, s]).sum(-1) for s in seen], -1) / math.sqrt(q.shape[-1])
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def plain_heads(q: Any, k: Any, v: Any, window: int | None, both: bool) -> Any:
    """What each head gives: [B, T, H, P]."""
    length, rows = q.shape[1], []
    for t in range(length):
        seen = [s for s in range(length) if abs(t - s) < (window or length) and (both or s <= t)]
        rows.append(torch.einsum("bhs,bshp->bhp", weights_at(q, k, t, seen), v[:, seen]))
    return torch.stack(rows, 1)


def activator(w: Any, config: Any, x: Any) -> Any:
    gate = linear(w, "gate", x)
    gate = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    return linear(w, "out", normed(w, "norm", gate) * normed(w, "norm", linear(w, "up", x)))


def channel_attention(w: Any, config: Any, x: Any) -> Any:
    batch, length, width = x.shape
    padded = torch.cat([torch.zeros(batch, config.reach - length, width, dtype=x.dtype), x], 1).mT
    q, k, v = padded @ w["query"].T, padded @ w["key"].T, padded @ w["value"].T
    rows = [(((q[:, [d]] * k).sum(-1) / math.sqrt(config.query_dim)).softmax(-1)[..., None] * v).sum(1) for d in range(width)]
    return torch.stack(rows, -1)[:, config.reach - length:]


def conv_attention(w: Any, config: Any, x: Any) -> Any:
    y = plain_heads(*heads_of(w, x, config.heads, config.rotary), None, config.bidirectional).flatten(2)
    return linear(w, "out", y) + linear(w, "local_out", filtered(linear(w, "local", x), w["taps"], config.bidirectional))


def conv_projection(w: Any, name: str, x: Any) -> Any:
    h = linear(w, f"{name}.linear", normed(w, f"{name}.norm", x))
    h = h * torch.sigmoid(h)
    return h + filtered(h, w[f"{name}.taps"], True)


def dilated_memory(w: Any, config: Any, x: Any) -> Any:
    h = linear(w, "input", x)
    h = normed(w, "input_norm", torch.maximum(h, h * 0) + w["input_slope"] * torch.minimum(h, h * 0))
    u, v = conv_projection(w, "to_u", h), conv_projection(w, "to_v", h)
    held, row = [torch.relu(linear(w, "expand", u)) @ w["project.weight"].T], 0
    for n in range(config.layers):
        total = torch.zeros_like(held[0])
        for part in reversed(held):
            for j in range(2 * config.order - 1):
                by = (j - config.order + 1) * 2**n
                moved = torch.zeros_like(part)
                if abs(by) < x.shape[1]:
                    moved[:, max(0, -by):x.shape[1] - max(0, by)] = part[:, max(0, by):x.shape[1] + min(0, by)]
                total = total + w["taps"][row, :, j] * moved
            row += 1
        total = (total - total.mean(1, keepdim=True)) / torch.sqrt(total.var(1, unbiased=False, keepdim=True) + 1e-5)
        total = total * w["gain"][n] + w["shift"][n]
        held.append(torch.maximum(total, total * 0) + w["slope"][n] * torch.minimum(total, total * 0))
    return linear(w, "out", normed(w, "out_norm", v * (u + held[-1]) + h))


def gin_attention(w: Any, config: Any, x: Any) -> Any:
    q, k, v = heads_of(w, x, config.heads, config.rotary)
    rows = []
    for t in range(x.shape[1]):
        edges = weights_at(q, k, t, list(range(t + 1)))
        if config.threshold is not None:
            edges = torch.relu(edges - config.threshold)
        node = (1 + w["epsilon"])[:, None] * v[:, t] + torch.einsum("bhs,bshp->bhp", edges, v[:, :t + 1])
        hidden = torch.stack([node[:, h] @ w["up"][h].T for h in range(config.heads)], 1)
        hidden = hidden * torch.sigmoid(hidden)
        rows.append(torch.cat([hidden[:, h] @ w["down"][h].T for h in range(config.heads)], -1))
    return linear(w, "out", torch.stack(rows, 1))


def gated_attention_unit(w: Any, config: Any, x: Any) -> Any:
    """Token by token."""
    length, half = x.shape[1], x.shape[2] // 2
    if config.shift:
        before = torch.cat([0 * x[:, :1], x[:, :-1]], 1)
        x = torch.cat([before[..., :half], x[..., half:]], -1)
    v, u = conv_projection(w, "to_hidden", x).chunk(2, -1)
    shared = conv_projection(w, "to_query", x)
    q1, q2, k1, k2 = (shared * w["scale"][i] + w["offset"][i] for i in range(4))
    first = 2 * config.rotary
    if first:
        q1, q2, k1, k2 = (torch.cat([turned(part[:, :, None, :first], 10000.0)[:, :, 0], part[..., first:]], -1)
                          for part in (q1, q2, k1, k2))
    rows = []
    for t in range(length):
        near = range(t // config.chunk * config.chunk, min((t // config.chunk + 1) * config.chunk, length))
        weight = {s: torch.relu((q1[:, t] * k1[:, s]).sum(-1) / config.chunk) ** 2 for s in near}
        far = [(q2[:, t] * k2[:, s]).sum(-1) / length for s in range(length)]
        each = [(weight.get(s, 0) + far[s])[:, None] for s in range(length)]
        a_v, a_u = (sum(each[s] * part[:, s] for s in range(length)) for part in (v, u))
        rows.append(a_u * v[:, t] * torch.sigmoid(a_v * u[:, t]))
    return conv_projection(w, "to_out", torch.stack(rows, 1))


def places(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(rows) for c in range(columns)]


def faded(q: Any, k: Any, v: Any, config: Any, where: list[tuple[int, int]]) -> Any:
    """All tokens of [B, N, K, P] with all."""
    decay = torch.tensor([1 - 2 ** -(config.first + config.span * h / config.heads) for h in range(config.heads)],
                         dtype=torch.float64)
    out = []
    for n, (r, c) in enumerate(where):
        distance = torch.tensor([abs(r - a) + abs(c - b) for a, b in where], dtype=torch.float64)
        fade = decay[:, None] ** distance
        weight = torch.einsum("bkp,bnkp->bkn", q[:, n], k) / math.sqrt(q.shape[-1])
        weight = (weight.exp() * fade) / (weight.exp() * fade).sum(-1, keepdim=True) if config.inside \
            else weight.exp() / weight.exp().sum(-1, keepdim=True) * fade
        out.append(torch.einsum("bkn,bnkp->bkp", weight, v))
    return torch.stack(out, 1)


def manhattan_attention(w: Any, config: Any, x: Any) -> Any:
    batch, rows, columns, _ = x.shape
    q, k, v = (linear(w, name, x).unflatten(-1, (config.heads, -1)) for name in ("query", "key", "value"))
    local = torch.zeros_like(v.flatten(3))
    reach = config.kernel // 2
    for r, c in places(rows, columns):
        for a, b in places(config.kernel, config.kernel):
            at = r + a - reach, c + b - reach
            if 0 <= at[0] < rows and 0 <= at[1] < columns:
                local[:, r, c] = local[:, r, c] + w["taps"][:, a, b] * v.flatten(3)[:, at[0], at[1]]
    if config.rotary:
        half = q.shape[-1] // 2
        rate = [10000 ** -(i / max(half - 1, 1)) for i in range(half)]
        angle = torch.tensor([[n * f for f in rate] for n in range(rows * columns)], dtype=torch.float64)
        q, k = (spun(part, angle.view(rows, columns, 1, half)) for part in (q, k))
    if not config.decompose:
        y = faded(*(part.flatten(1, 2) for part in (q, k, v)), config, places(rows, columns)).unflatten(1, (rows, columns))
    else:
        v = torch.stack([faded(q[:, r], k[:, r], v[:, r], config, places(1, columns)) for r in range(rows)], 1)
        y = torch.stack([faded(q[:, :, c], k[:, :, c], v[:, :, c], config, places(rows, 1)) for c in range(columns)], 2)
    return linear(w, "out", y.flatten(3) + local)


def spun(x: Any, angle: Any) -> Any:
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def mixture_of_heads(w: Any, config: Any, x: Any) -> Any:
    y = plain_heads(*heads_of(w, x, config.heads, config.rotary), config.window, config.bidirectional)
    a = 2 * linear(w, "weigh", x).softmax(-1)
    share, route = config.shared_heads * linear(w, "share", x).softmax(-1), linear(w, "route", x).softmax(-1)
    rank = (route[..., None, :] > route[..., :, None]).sum(-1)                # how many are larger
    chosen = route * (rank < config.top_k)
    chosen = config.top_k * chosen / chosen.sum(-1, keepdim=True)
    gate = torch.cat([a[..., :1] * share, a[..., 1:] * chosen], -1)
    return linear(w, "out", (y * gate[..., None]).flatten(2))


def positional_attention(w: Any, config: Any, x: Any) -> Any:
    rows, columns = x.shape[1:3]
    where, heads = places(rows, columns), config.heads
    q, k, v = (linear(w, name, x.flatten(1, 2)).unflatten(-1, (heads, -1)) for name in ("query", "key", "value"))
    side = math.isqrt(heads)
    middle = side // 2 if side % 2 else (side - 1) / 2
    centre = [(h // side - middle, h % side - middle) if h < side * side else (0, 0) for h in range(heads)]
    out = []
    for n, (r, c) in enumerate(where):
        content = weights_at(q, k, n, list(range(len(where))))
        terms = torch.tensor([[r2 - r, c2 - c, (r2 - r) ** 2 + (c2 - c) ** 2] for r2, c2 in where], dtype=torch.float64)
        start = torch.tensor([[2 * a, 2 * b, -1] for a, b in centre], dtype=torch.float64)
        place = ((config.strength * start + w["place"]) @ terms.T).softmax(-1)
        gate = torch.sigmoid(w["gate"])[:, None]
        out.append(torch.einsum("bhs,bshp->bhp", (1 - gate) * content + gate * place, v).flatten(1))
    return linear(w, "out", torch.stack(out, 1)).view(x.shape)


def batch_normed(w: Any, name: str, x: Any) -> Any:
    flat = x.flatten(0, -2)
    return (x - flat.mean(0)) / torch.sqrt(flat.var(0, unbiased=False) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def single_head_attention(w: Any, config: Any, x: Any) -> Any:
    tokens, channels = x.flatten(1, 2), max(1, round(config.ratio * x.shape[-1]))
    some, others = tokens[..., :channels], tokens[..., channels:]
    mean, var = some.flatten(1).mean(1)[:, None, None], some.flatten(1).var(1, unbiased=False)[:, None, None]
    some = (some - mean) / torch.sqrt(var + 1e-5) * w["weight"] + w["bias"]
    qkv = batch_normed(w, "input_norm", linear(w, "input", some))
    q, k, v = qkv[..., :config.query_dim], qkv[..., config.query_dim:2 * config.query_dim], qkv[..., 2 * config.query_dim:]
    scores = [(q[:, [t]] * k).sum(-1) / math.sqrt(config.query_dim) for t in range(q.shape[1])]
    y = torch.stack([(score.softmax(-1)[..., None] * v).sum(1) for score in scores], 1)
    joined = torch.relu(torch.cat([y, others], -1))
    return batch_normed(w, "out_norm", linear(w, "out", joined)).view(x.shape)


def cross_view_attention(w, config, x):
    """Token by token over the tokens of other views, the sequence cut where t * views passes a multiple of its length."""
    y, length = torch.zeros_like(x), x.shape[1]
    q, k, v = (x @ w[f"{name}.weight"].T for name in ("query", "key", "value"))
    size = q.shape[-1] // config.heads
    for i in range(length):
        others = [j for j in range(length) if j * config.views // length != i * config.views // length] or [i]
        for head in range(config.heads):
            at = slice(head * size, (head + 1) * size)
            weights = torch.stack([(q[:, i, at] * k[:, j, at]).sum(-1) / math.sqrt(size) for j in others], -1).softmax(-1)
            mixed = sum(weights[:, n, None] * v[:, j, at] for n, j in enumerate(others))
            y[:, i] = y[:, i] + mixed @ w["out.weight"][:, at].T
    return y


def spherical_attention(w: Any, config: Any, x: Any) -> Any:
    rows, columns = x.shape[1:3]
    q, k, v = (linear(w, name, x.flatten(1, 2)).unflatten(-1, (config.heads, -1)) for name in ("query", "key", "value"))
    lines = config.grid == "equiangular" and rows > 1
    angles = [math.pi * r / (rows - 1) if lines else math.pi * (r + 0.5) / rows for r in range(rows)]
    if lines:
        # Clenshaw-Curtis integrates cosines of the angle exactly up to the number of nodes: solve for its weights.
        cosines = torch.tensor([[math.cos(n * a) for a in angles] for n in range(rows)], dtype=torch.float64)
        exact = torch.tensor([0.0 if n % 2 else 2 / (1 - n * n) for n in range(rows)], dtype=torch.float64)
        area = torch.linalg.solve(cosines, exact).tolist()
    else:
        area = [2 * math.sin(a) * math.sin(math.pi / rows / 2) for a in angles]
    where = [(angles[r], 2 * math.pi * c / columns, area[r]) for r, c in places(rows, columns)]
    out = []
    for n, (a, turn, _) in enumerate(where):
        cosine = [math.cos(a) * math.cos(b) + math.sin(a) * math.sin(b) * math.cos(turn - u) for b, u, _ in where]
        least = -1 if config.radius is None else math.cos(config.radius)
        seen = [s for s, c in enumerate(cosine) if c >= least - 1e-9]
        size = torch.tensor([where[s][2] for s in seen], dtype=torch.float64)
        score = size * torch.exp(torch.einsum("bhp,bshp->bhs", q[:, n], k[:, seen]) / math.sqrt(q.shape[-1]))
        out.append(torch.einsum("bhs,bshp->bhp", score / score.sum(-1, keepdim=True), v[:, seen]).flatten(1))
    return linear(w, "out", torch.stack(out, 1)).view(x.shape)


def pointer_head(w: Any, config: Any, x: Any) -> Any:
    length = x.shape[1]
    keys, queries = linear(w, "key", x), linear(w, "query", x)
    score = torch.stack([(w["score"][0] * torch.tanh(keys + queries[:, i, None])).sum(-1) for i in range(length)], 1)
    later = torch.ones(length, length).triu(1).bool()
    return score.masked_fill(later, torch.finfo(x.dtype).min) if config.backwards else score


REFERENCES: dict[str, Reference] = {
    "Activator": activator, "ChannelAttention": channel_attention, "SplitAttention": conv_attention,
    "DilatedFSMN": dilated_memory, "GINAttention": gin_attention, "GatedAttentionUnit": gated_attention_unit,
    "ManhattanAttention": manhattan_attention, "MixtureOfHeads": mixture_of_heads, "PointerHead": pointer_head,
    "PositionalAttention": positional_attention, "SingleHeadAttention": single_head_attention,
    "CrossViewAttention": cross_view_attention,
    "SphericalAttention": spherical_attention,
}
