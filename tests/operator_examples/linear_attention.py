"""Linear attention and its kin: constant and gated decays, kernels, agents, hashes, and what replaces attention."""

from __future__ import annotations

import bodyplan as bp
import torch
import torch.nn.functional as F
from bodyplan.space.operator import Operator
from bodyplan.space.operators.nprf import normal_numbers

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
    """All pairs: q_t . k_s with the product of the decays after s."""
    g = a.log().cumsum(1)
    later = torch.ones(q.shape[1], q.shape[1]).triu(1)[..., None, None] > 0
    between = (g[:, :, None] - g[:, None]).masked_fill(later, -torch.inf)
    return torch.einsum("bthk,bshk,btshk,bshv->bthv", q, k, between.exp(), v)


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


def key_value(weights, config, x):
    k, v = (heads_of(x, weights, name, config.heads) for name in ("key", "value"))
    s = torch.einsum("bthk,bshk->bhts", k, k) / k.shape[-1] ** 0.5
    place = torch.arange(x.shape[1], dtype=x.dtype)
    for c in range(config.frequencies or 0):
        angle = place * 10000 ** (-c / config.frequencies)
        for i, row in enumerate((angle.sin(), angle.cos())):
            for j, column in enumerate((angle.sin(), angle.cos())):
                s = s + weights["places"][:, c, i, j, None, None] * row[:, None] * column
    if not config.bidirectional:
        s = s.masked_fill(place > place[:, None], -torch.inf)
    return F.linear(torch.einsum("bhts,bshv->bthv", s.softmax(-1), v).flatten(2), weights["out.weight"])


def nprf(weights, config, x):
    """All pairs."""
    q, k, v = (heads_of(x, weights, name, config.heads) for name in ("query", "key", "value"))
    w = normal_numbers(config.heads, config.features, q.shape[-1], "cpu", x.dtype)
    q, k = ((torch.einsum("bthp,hfp->bthf", each / each.norm(dim=-1, keepdim=True), w) - 0.5).exp() / config.features**0.5
            for each in (q, k))
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    last = config.reach - 1
    b = weights["bias"][:, apart.clamp(0, last)]
    if config.bidirectional:
        b = torch.where(apart >= 0, b, weights["ahead"][:, (-apart).clamp(1, last + 1) - 1])
    a = torch.einsum("bthf,bshf->bhts", q, k) * b.exp()
    a = a if config.bidirectional else a.tril()
    return F.linear(torch.einsum("bhts,bshv->bthv", a / a.sum(-1, keepdim=True), v).flatten(2), weights["out.weight"])


def stretched(table, *sizes):
    """Linear interpolation along the last dimensions, half a place in from the edges, clamped there."""
    for back, size in enumerate(reversed(sizes), 1):
        dim, old = table.ndim - back, table.shape[table.ndim - back]
        at = ((torch.arange(size, dtype=table.dtype) + 0.5) * old / size - 0.5).clamp(0, old - 1)
        low = at.floor().long()
        part = (at - low).view(-1, *[1] * (back - 1))
        high = (low + 1).clamp_max(old - 1)
        table = table.index_select(dim, low) * (1 - part) + table.index_select(dim, high) * part
    return table


def agent(weights, config, x):
    grid = x if x.ndim == 4 else x[:, :, None]
    rows, columns = grid.shape[1:3]
    down, across = (config.side, config.side) if x.ndim == 4 else (config.side**2, 1)
    q, k, v = (heads_of(grid, weights, name, config.heads) for name in ("query", "key", "value"))
    a = torch.stack([q[:, i * rows // down:-(-(i + 1) * rows // down), j * columns // across:-(-(j + 1) * columns // across)]
                     .mean((1, 2)) for i in range(down) for j in range(across)], 1)
    bias = torch.zeros(2, config.heads, down * across, rows * columns, dtype=x.dtype)
    if config.table:
        bias = stretched(weights["blocks"], rows, columns) + stretched(weights["lines"][0], rows)[..., None]
        bias = (bias + stretched(weights["lines"][1], columns)[..., None, :]).flatten(-2).flatten(2, 3)
    scale = q.shape[-1] ** -0.5
    gather = (torch.einsum("bnhp,bthp->bhnt", a, k.flatten(1, 2)) * scale + bias[0]).softmax(-1)
    ask = (torch.einsum("bthp,bnhp->bhtn", q.flatten(1, 2), a) * scale + bias[1].transpose(1, 2)).softmax(-1)
    y = torch.einsum("bhtn,bhns,bshp->bthp", ask, gather, v.flatten(1, 2)).flatten(2)
    if config.kernel:
        half = config.kernel // 2
        padded = F.pad(v.flatten(3), (0, 0, half, half, half, half))
        y = y + weights["shift"] + sum(
            (padded[:, i:i + rows, j:j + columns] * weights["taps"][:, i, j]).flatten(1, 2)
            for i in range(config.kernel) for j in range(config.kernel))
    return F.linear(y, weights["out.weight"]).view(x.shape)


def super_token(weights, config, x):
    """A dictionary of cells, token by token."""
    grid = x if x.ndim == 4 else x[:, :, None]
    _, rows, columns, width = grid.shape
    high, wide = min(config.cell, rows), min(config.cell, columns)
    home = {(r, c): (r // high, c // wide) for r in range(rows) for c in range(columns)}
    cells = sorted(set(home.values()))
    mean = {s: torch.stack([grid[:, r, c] for (r, c), own in home.items() if own == s]).mean(0).detach() for s in cells}
    near = {at: [s for s in cells if abs(s[0] - own[0]) < 2 and abs(s[1] - own[1]) < 2] for at, own in home.items()}
    for turn in range(config.iterations):
        share = {}
        for (r, c), around in near.items():
            score = torch.stack([(grid[:, r, c].detach() * mean[s]).sum(-1) for s in around], -1) / width**0.5
            share |= {((r, c), s): part for s, part in zip(around, score.softmax(-1).unbind(-1), strict=True)}
        mean = {s: sum(part[:, None] * grid[:, at[0], at[1]] for (at, to), part in share.items() if to == s)
                / sum(part for (_, to), part in share.items() if to == s)[:, None] for s in cells}
        if turn < config.iterations - 1:
            mean = {s: each.detach() for s, each in mean.items()}
    tokens = torch.stack([mean[s] for s in cells], 1)
    q, k, v = (heads_of(tokens, weights, name, config.heads) for name in ("query", "key", "value"))
    a = (torch.einsum("bthk,bshk->bhts", q, k) / k.shape[-1] ** 0.5).softmax(-1)
    y = F.linear(torch.einsum("bhts,bshv->bthv", a, v).flatten(2), weights["out.weight"])
    out = [sum(share[at, s][:, None] * y[:, cells.index(s)] for s in around) for at, around in near.items()]
    return torch.stack(out, 1).view(x.shape)


def hashed(weights, config, x):
    """Counts of equal bits as weights of a softmax-like mean, all pairs."""
    q, k, v = (heads_of(x, weights, name, config.heads) for name in ("query", "key", "value"))

    def codes(each):
        apart = (each[:, :, :, None] - weights["anchors"]).square().sum(-1)
        kernel = (-apart / (2 * apart.mean((1, 3), keepdim=True) + 1e-12)).exp() - weights["mean"]
        logit = torch.einsum("bthm,hcm->bthc", kernel, weights["hash"])
        soft = logit.clamp(-1, 1)
        return logit.sign().detach() + soft - soft.detach()

    equal = (config.bits + torch.einsum("bthc,bshc->bhts", codes(q), codes(k)))
    a = equal / equal.sum(-1, keepdim=True).clamp_min(1)
    return F.linear(torch.einsum("bhts,bshv->bthv", a, v).flatten(2), weights["out.weight"])


def sequence_ff(weights, config, x):
    padded = F.pad(x, (0, 0, 0, config.max_len - x.shape[1])).flatten(1)
    prefix, outputs = "" if config.heads is None else "head_", []
    for head in range(config.heads or 1):
        up, up_bias, down, down_bias = (weights[prefix + name] for name in ("up", "up_bias", "down", "down_bias"))
        if config.heads:
            up, up_bias, down, down_bias = up[head], up_bias[head], down[:, head], down_bias[:, head]
        h = F.linear(padded, up.flatten(1), up_bias).clamp_min(0)
        outputs.append(F.linear(h, down.flatten(0, 1), down_bias.flatten()).view(len(x), config.max_len, -1)[:, :x.shape[1]])
    y = torch.cat(outputs, -1)
    return F.linear(y, weights["out.weight"]) if config.heads else y


def sea(weights, config, x):
    """All pairs, those that are not chosen at minus infinity."""
    length = x.shape[1]
    q, k, v = (heads_of(x, weights, name, config.heads).transpose(1, 2) for name in ("query", "key", "value"))
    p = q.shape[-1]
    w = normal_numbers(config.heads, config.features, p, "cpu", x.dtype).transpose(1, 2)
    logits = [(each / p**0.25) @ w - each.square().sum(-1, keepdim=True) / (2 * p**0.5) for each in (q, k)]
    qf = (logits[0] - logits[0].detach().amax(3, keepdim=True)).exp() + 1e-4
    kf = (logits[1] - logits[1].detach().amax((2, 3), keepdim=True)).exp() + 1e-4
    a = qf @ kf.transpose(2, 3)
    a = a / a.sum(-1, keepdim=True)
    place = torch.arange(length, dtype=x.dtype) * (p - 1) / max(length - 1, 1)
    marks = (1 - (place[:, None] - torch.arange(p)).abs()).clamp_min(0).expand(*v.shape[:2], -1, -1)
    e = F.linear(torch.cat([a @ marks, a @ v, v], -1), weights["encode.weight"], weights["encode.bias"])
    e = (e - e.mean(-1, keepdim=True)) / (e.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    e = F.gelu(e * weights["norm.weight"] + weights["norm.bias"])
    rows = F.linear(e, weights["decode.weight"], weights["decode.bias"])
    wide = F.conv2d(rows, weights["widen"], padding=1).clamp_min(0)
    estimate = (rows + F.conv2d(wide, weights["narrow"], padding=1)).softmax(-1)

    cells = min(config.columns, length)
    cell_of = torch.tensor([token * cells // length for token in range(length)])
    of_cells = estimate[..., [cell * config.columns // cells for cell in range(cells)]]
    count = min(cells, max(1, round(config.tokens * cells / length)))
    is_chosen = (of_cells >= of_cells.sort(-1).values[..., -count, None])[..., cell_of]
    log = of_cells.clamp_min(1e-12).log()[..., cell_of]
    s = q @ k.transpose(2, 3) / p**0.5 + log - log.detach()
    near = s.masked_fill(~is_chosen, -torch.inf).softmax(-1) @ v
    trust = torch.sigmoid(F.linear(e, weights["trust.weight"], weights["trust.bias"]))
    y = trust * near + (1 - trust) * v.mean(2, keepdim=True)
    return F.linear(y.transpose(1, 2).flatten(2), weights["out.weight"])


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
    "KeyValueAttention": [
        (bp.KeyValueAttention(heads=4, frequencies=6), 32), (bp.KeyValueAttention(heads=2, head_dim=6), 16),
        (bp.KeyValueAttention(heads=2, frequencies=3, bidirectional=True), 16)],
    "NPRF": [
        (bp.NPRF(heads=4, features=8, reach=20), 32), (bp.NPRF(heads=2, head_dim=5, features=3, reach=100), 16),
        (bp.NPRF(heads=2, features=4, reach=6, bidirectional=True), 16)],
    "AgentAttention": [
        (bp.AgentAttention(heads=4, side=4, table=6, kernel=5), 16), (bp.AgentAttention(heads=2, side=2, table=3), 8),
        (bp.AgentAttention(heads=2, side=3, table=None, kernel=None, head_dim=3), 8)],
    "SuperTokenAttention": [
        (bp.SuperTokenAttention(heads=4, cell=3), 16),
        (bp.SuperTokenAttention(heads=2, cell=2, iterations=2, head_dim=3), 8)],
    "EcoFormer": [(bp.EcoFormer(heads=4, bits=8, anchors=10), 32),
                  (bp.EcoFormer(heads=2, bits=5, anchors=6, head_dim=4), 16)],
    "SequenceFF": [(bp.SequenceFF(max_len=120, hidden=12), 16), (bp.SequenceFF(max_len=110, hidden=8, heads=4), 16),
                   (bp.SequenceFF(max_len=100, hidden=6, heads=1), 8)],
    "SEA": [(bp.SEA(heads=4, tokens=6, columns=12, features=8, channels=6), 16),
            (bp.SEA(heads=2, tokens=3, columns=6, features=5, channels=4, head_dim=3), 8)],
}

UNVARIED: dict[str, dict[str, str]] = {
    "Retention": {"half": "a rotary pair is two numbers"},
    "Lightning": {"half": "a rotary pair is two numbers"},
    "Liger": {"half": "a rotary pair is two numbers"},
    "KeyValueAttention": {"row_waves": "a sine and a cosine", "column_waves": "a sine and a cosine"},
    "SEA": {"tap_rows": "convolutions are 3 x 3", "tap_columns": "convolutions are 3 x 3", "trust": "it is one number"},
    "AgentAttention": {"ways": "agents gather, and are asked", "lines": "a row and a column"},
}

UNVARIED_OPTIONS: dict[str, dict[str, str]] = {}

REFERENCES = {"LinearAttention": linear_attention, "Based": linear_attention, "Retention": decayed, "Lightning": decayed,
              "GLA": gla, "Liger": liger, "Aaren": aaren,
              "KeyValueAttention": key_value, "NPRF": nprf, "AgentAttention": agent,
              "SuperTokenAttention": super_token, "EcoFormer": hashed, "SequenceFF": sequence_ff, "SEA": sea}
