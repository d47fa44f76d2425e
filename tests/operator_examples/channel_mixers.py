"""Channel mixers: routed and masked widths, learned activations, tables, parameter tokens, adapters."""

from __future__ import annotations

import math

import bodyplan as bp
import torch
from bodyplan.space.operator import Operator

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "AdapterMLP": [(bp.AdapterMLP(ratio=2, adapters=3, bottleneck=5), 24),
                   (bp.AdapterMLP(ratio=1, activation="silu", adapters=2, bottleneck=3), 16)],
    "DynamicMoE": [(bp.DynamicMoE(experts=6, top_p=0.5, ratio=2), 24), (bp.DynamicMoE(experts=4, top_p=0.9, ratio=1), 16),
                   (bp.DynamicMoE(experts=3, top_p=1, ratio=1), 16)],
    "FixedGraph": [(bp.FixedGraph(neurons=30, sensory=9, outputs=7, density=0.2), 24),
                   (bp.FixedGraph(neurons=12, sensory=12, outputs=5, steps=1, density=0.5), 16),
                   (bp.FixedGraph(neurons=20, sensory=5, outputs=4, steps=3, density=1, scale=0.2), 16)],
    "GRKAN": [(bp.GRKAN(ratio=2, groups=4), 24), (bp.GRKAN(ratio=1, groups=2), 16)],
    "MemoryLayers": [(bp.MemoryLayers(bits=4, inner_bits=6), 32), (bp.MemoryLayers(bits=3, temperature=0.5), 12)],
    "MemoryLayerMixer": [
        (bp.MemoryLayerMixer(heads=4, bits=4), 32), (bp.MemoryLayerMixer(heads=2, head_dim=6, bits=3), 12),
        (bp.MemoryLayerMixer(heads=2, bits=4, temperature=0.5, rope_base=100.0), 16)],
    "MemoryMLP": [
        (bp.MemoryMLP(ratio=2, levels=(2, 3), block=(12, 7), path=(1, 2)), 24),
        (bp.MemoryMLP(ratio=1, levels=(2, 3), block=(5, 7), path=(0, 2)), 16),
        (bp.MemoryMLP(ratio=1, activation="silu", levels=(2, 2), block=4, path=(1, 0)), 16),
        (bp.MemoryMLP(ratio=1, levels=(), path=()), 16)],
    "MoHD": [(bp.MoHD(shared=0.5, groups=4, top_k=2, ratio=2), 32), (bp.MoHD(shared=0.3, groups=3, top_k=1, ratio=1), 16),
             (bp.MoHD(shared=0, groups=2, top_k=2, ratio=1), 24)],
    "MoHDAttention": [
        (bp.MoHDAttention(heads=4, groups=4, top_k=2), 32),
        (bp.MoHDAttention(heads=2, shared=0.3, groups=3, top_k=1, head_dim=6, rotary=False), 16),
        (bp.MoHDAttention(heads=2, shared=0, groups=2, top_k=2), 24)],
    "NormedMLP": [
        (bp.NormedMLP(ratio=2, last=True, norm="layer"), 24), (bp.NormedMLP(ratio=1, activation="gelu", norm="layer"), 16),
        (bp.NormedMLP(ratio=1, activation="silu"), 16), (bp.NormedMLP(ratio=2, bias=True), 16),
        (bp.NormedMLP(ratio=2, activation="spike", norm="affine", bias=True), 16),
        (bp.NormedMLP(ratio=1, activation="spike", norm="affine"), 8)],
    "PartialFormer": [
        (bp.PartialFormer(heads=4, ratio=4), 32), (bp.PartialFormer(heads=2, head_dim=6), 24),
        (bp.PartialFormer(heads=2, ratio=1, rope_base=100.0), 16)],
    "Pattention": [(bp.Pattention(ratio=3), 24), (bp.Pattention(ratio=1, scale=2.5), 16)],
    "PattentionMixer": [(bp.PattentionMixer(heads=4, ratio=2), 32), (bp.PattentionMixer(heads=2, head_dim=6), 24),
                        (bp.PattentionMixer(heads=2, ratio=1, scale=3.0, rope_base=100.0), 16)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {
    "GRKAN": {"numerator": "the paper's order 5", "denominator": "the paper's order 4"},
    "MemoryLayerMixer": {"half": "a rotary pair is two numbers", "group": "every head has keys of its own"},
    "MemoryMLP": {"child_0": "one child of every node is fetched", "child_1": "one child of every node is fetched"},
    "MoHDAttention": {"half": "a rotary pair is two numbers"},
    "PartialFormer": {"half": "a rotary pair is two numbers", "group": "every head has keys of its own"},
    "PattentionMixer": {"half": "a rotary pair is two numbers", "group": "every head has keys of its own"},
}


def per_token(token):
    """A reference over [B, T, D] from one for a single token."""
    def reference(w, config, x_BTD):
        return torch.stack([torch.stack([token(w, config, x_D) for x_D in x_TD]) for x_TD in x_BTD])

    return reference


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x):
    return x / (1 + torch.exp(-x))


def _adapters(w, config, x_BTD):
    up = x_BTD @ w["feed_forward.up.weight"].T
    y_BTD = (gelu(up) if config.activation == "gelu" else silu(up)) @ w["feed_forward.down.weight"].T
    scores = torch.exp(x_BTD @ w["gate.weight"].T)
    for a in range(config.adapters):
        part = slice(a * config.bottleneck, (a + 1) * config.bottleneck)
        h_BTR = (x_BTD @ w["adapter_down.weight"][part].T).clamp(min=0)
        y_BTD = y_BTD + scores[..., a, None] / scores.sum(-1, keepdim=True) * (h_BTR @ w["adapter_up.weight"][:, part].T)
    return y_BTD


def _dynamic_experts(w, config, x_D):
    """Experts in order of probability until they hold more than top_p, each times its probability."""
    scores = torch.exp(w["router.weight"] @ x_D)
    probability = scores / scores.sum()
    held, y_D = 0.0, torch.zeros_like(x_D)
    for e in sorted(range(config.experts), key=lambda e: -float(probability[e].detach())):
        if held > config.top_p:
            break
        y_D = y_D + probability[e] * (w["down"][e] @ (silu(w["gate"][e] @ x_D) * (w["up"][e] @ x_D)))
        held += float(probability[e].detach()) if config.top_p < 1 else 0.0
    return y_D


def _fixed_graph(w, config, x_BTD):
    """A network that starts at rest and is given the input in every step; what is cut off is zero."""
    graph = w["graph"] * (config.scale or 1)
    if config.scale is None:
        cut = math.sqrt(2) * torch.erfinv(torch.tensor(1 - config.density, dtype=x_BTD.dtype))
        tail = config.density + cut * torch.exp(-cut**2 / 2) * math.sqrt(2 / math.pi)
        graph = torch.where(graph.abs() > cut, graph / torch.sqrt(len(graph) * tail), 0.0)
    drive = x_BTD.new_zeros(*x_BTD.shape[:2], config.neurons)
    drive[..., :config.sensory] = x_BTD @ w["sense.weight"].T
    h = torch.zeros_like(drive)
    for _ in range(config.steps):
        h = (h @ graph.T + drive).clamp(min=0)
    return h[..., config.neurons - config.outputs:] @ w["read.weight"].T


def _rational(x, numerator, denominator):
    """Group after group, powers as they are written."""
    parts = []
    for part, b in zip(x.chunk(len(denominator), -1), denominator, strict=True):
        above = sum(numerator[m] * part**m for m in range(6))
        parts.append(above / (1 + abs(sum(b[n - 1] * part**n for n in range(1, 5)))))
    return torch.cat(parts, -1)


def _group_rational(w, config, x_BTD):
    h_BTF = _rational(x_BTD, w["up_numerator"], w["up_denominator"]) @ w["up.weight"].T + w["up.bias"]
    return _rational(h_BTF, w["down_numerator"], w["down_denominator"]) @ w["down.weight"].T + w["down.bias"]


def _table(z, table, temperature):
    """Chunk after chunk: the entry whose number has a bit for every positive channel, times how sure that is."""
    bits, y = z.shape[-1] // len(table), 0.0
    for chunk, entries in zip(z.split(bits, -1), table, strict=True):
        code = sum(2**i * (chunk[..., i] > 0).long() for i in range(bits))
        sure = torch.prod(1 / (1 + torch.exp(-2 * chunk.abs() / temperature)), -1)
        y = y + sure[..., None] * entries[code]
    return y


def _memory_layers(w, config, x_BTD):
    h = _table(x_BTD, w["first.table"], config.temperature)
    h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt((h**2).mean(-1, keepdim=True) + 1e-5) * w["gain"] + w["shift"]
    return _table(h, w["second.table"], config.temperature)


def _hidden_routing(w, config, x_D):
    """What a token reads, 0 where it is not active, and the factors on what it writes."""
    size = round((1 - config.shared) * len(x_D) / config.groups)
    shared = len(x_D) - config.groups * size
    scores = w["router.weight"] @ x_D
    probability = torch.exp(scores) / torch.exp(scores).sum()
    chosen = sorted(range(config.groups), key=lambda g: -float(scores[g].detach()))[:config.top_k]
    active = [torch.ones(shared, dtype=x_D.dtype)]
    active += [torch.full((size,), float(g in chosen), dtype=x_D.dtype) for g in range(config.groups)]
    mask_D = torch.cat(active) * math.sqrt(len(x_D) / (shared + config.top_k * size))
    return mask_D * x_D, torch.cat([active[0], config.groups * probability.repeat_interleave(size)]) * mask_D


def _fused_groups(w, config, y_D):
    size = round((1 - config.shared) * len(y_D) / config.groups)
    shared = len(y_D) - config.groups * size
    parts = [y_D[shared + g * size:shared + (g + 1) * size] for g in range(config.groups)]
    mixed = [parts[g] + sum(w["fusion"][g, other] * parts[other] for other in range(config.groups))
             for g in range(config.groups)]
    return torch.cat([y_D[:shared], *mixed])


def _hidden_mixture(w, config, x_D):
    """Masked dense products: what is not active is zero."""
    read_D, weight_D = _hidden_routing(w, config, x_D)
    h_F = silu(w["gate.weight"] @ read_D) * (w["up.weight"] @ read_D)
    return _fused_groups(w, config, weight_D * (w["down.weight"] @ h_F))


def _hidden_attention(w, config, x_BTD):
    """One token after the other, with masked dense products."""
    out = []
    for x_TD in x_BTD:
        routed = [_hidden_routing(w, config, x_D) for x_D in x_TD]
        q, k, v = (torch.stack([w[f"{name}.weight"] @ read_D for read_D, _ in routed]).unflatten(-1, (config.heads, -1))
                   for name in ("query", "key", "value"))
        if config.rotary:
            half = q.shape[-1] // 2
            turn = torch.arange(len(q))[:, None] / 10000.0 ** (torch.arange(half, dtype=x_TD.dtype) / half)
            wave = torch.polar(torch.ones_like(turn), turn)[:, None]
            q, k = (torch.complex(z[..., :half], z[..., half:]) * wave for z in (q, k))
            q, k = (torch.cat([z.real, z.imag], -1) for z in (q, k))
        rows = []
        for t, (_, weight_D) in enumerate(routed):
            score = torch.exp(torch.einsum("hp,shp->hs", q[t], k[:t + 1]) / math.sqrt(q.shape[-1]))
            read_E = torch.einsum("hs,shp->hp", score / score.sum(-1, keepdim=True), v[:t + 1]).flatten()
            rows.append(_fused_groups(w, config, weight_D * (w["out.weight"] @ read_E)))
        out.append(torch.stack(rows))
    return torch.stack(out)


def parameter_attention(x, key, value, scale):
    """gelu(tau a_n / root of the sum of squares of a) V, with a_n the product with parameter token n."""
    scores = x @ key.T
    tau = math.sqrt(len(key)) if scale is None else scale
    return gelu(scores * tau / torch.sqrt((scores**2).sum(-1, keepdim=True))) @ value.T


def _pattention(w, config, x_BTD):
    return parameter_attention(x_BTD, w["key.weight"], w["value.weight"], config.scale)


def attention(project, network=lambda w, y_BHP: y_BHP):
    """Softmax over the visible tokens, one query after the other, with `project(w, name, config, x)` and a network in the
    heads; rotations by complex numbers."""
    def reference(w, config, x_BTD):
        head_dim = config.head_dim or x_BTD.shape[-1] // config.heads
        half, length = head_dim // 2, x_BTD.shape[1]
        step_P = torch.arange(half, dtype=x_BTD.dtype) / half
        turn = torch.arange(length, dtype=x_BTD.dtype)[:, None] / config.rope_base**step_P
        wave_T1P = torch.polar(torch.ones_like(turn), turn)[:, None]

        def turned(x_BTE):
            x = x_BTE.unflatten(-1, (config.heads, 2, half))
            rotated = torch.complex(x[..., 0, :], x[..., 1, :]) * wave_T1P
            return torch.cat([rotated.real, rotated.imag], -1)

        q, k = (turned(project(w, name, config, x_BTD)) for name in ("query", "key"))
        v = project(w, "value", config, x_BTD).unflatten(-1, (config.heads, head_dim))
        seen = []
        for t in range(length):
            scores = torch.einsum("bhp,bshp->bhs", q[:, t], k[:, :t + 1]) / math.sqrt(head_dim)
            read_BHP = torch.einsum("bhs,bshp->bhp", scores.softmax(-1), v[:, :t + 1])
            seen.append(network(w, read_BHP).flatten(1))
        return project(w, "out", config, torch.stack(seen, 1))

    return reference


def _by_tokens(w, name, config, x):
    return parameter_attention(x, w[f"{name}.key.weight"], w[f"{name}.value.weight"], config.scale)


def _by_table(w, name, config, x):
    return _table(x, w[f"{name}.table"], config.temperature)


def _by_matrix(w, name, config, x):
    return x @ w[f"{name}.weight"].T


def _head_networks(w, y_BHP):
    return torch.stack([(y_BP @ up.T).clamp(min=0) @ down.T
                        for y_BP, up, down in zip(y_BHP.unbind(1), w["head_up"], w["head_down"], strict=True)], 1)


def _fetched(w, config, x):
    act = {"gelu": gelu, "silu": silu}[config.activation]
    names = ["feed_forward", *(f"fetched.{level}" for level in range(len(config.levels)))]
    up, down = torch.cat([w[f"{n}.up.weight"] for n in names]), torch.cat([w[f"{n}.down.weight"] for n in names], 1)
    return act(x @ up.T) @ down.T


REFERENCES = {
    "AdapterMLP": _adapters,
    "MemoryMLP": _fetched,
    "DynamicMoE": per_token(_dynamic_experts),
    "FixedGraph": _fixed_graph,
    "GRKAN": _group_rational,
    "MemoryLayers": _memory_layers,
    "MoHD": per_token(_hidden_mixture),
    "MoHDAttention": _hidden_attention,
    "Pattention": _pattention,
    "MemoryLayerMixer": attention(_by_table),
    "PartialFormer": attention(_by_matrix, _head_networks),
    "PattentionMixer": attention(_by_tokens),
}
