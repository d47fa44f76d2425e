"""Operators against their papers' formulas, one token at a time in float64: outputs and all gradients."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.testing import check_reference

torch.set_num_threads(1)


def linear(x, weight):
    return torch.einsum("...d,fd->...f", x, weight)


def short_filter(x_BTD, taps_DW):
    """y_t = sum_j w_j x_{t - W + 1 + j}, term by term."""
    width, outputs = taps_DW.shape[1], []
    for t in range(x_BTD.shape[1]):
        past = [(j, t - width + 1 + j) for j in range(width)]
        outputs.append(sum(taps_DW[:, j] * x_BTD[:, s] for j, s in past if s >= 0))
    return torch.stack(outputs, 1)


def attention(w, config, x):
    batch, length, width = x.shape
    groups, per_group, size = config.sizes(width)
    half = size // 2
    angle = torch.tensor([[t * config.rope_base ** (-i / half) for i in range(half)] for t in range(length)],
                         dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)                # rotary positions as complex numbers

    def turned(y_BTHP):
        z = torch.complex(y_BTHP[..., :half], y_BTHP[..., half:]) * turn[:, None]
        return torch.cat([z.real, z.imag], -1)

    q = turned(linear(x, w["query.weight"]).view(batch, length, config.heads, size))
    k = turned(linear(x, w["key.weight"]).view(batch, length, groups, size))
    v = linear(x, w["value.weight"]).view(batch, length, groups, size)
    rows = []
    for t in range(length):
        first = 0 if config.window is None else max(0, t + 1 - config.window)
        heads = []
        for h in range(config.heads):
            keys, values = k[:, first:t + 1, h // per_group], v[:, first:t + 1, h // per_group]
            weights = ((q[:, t, h, None] * keys).sum(-1) / math.sqrt(size)).softmax(-1)
            heads.append((weights[..., None] * values).sum(1))
        rows.append(torch.cat(heads, -1))
    return linear(torch.stack(rows, 1), w["out.weight"])


def gated_delta(w, config, x):
    batch, length, width = x.shape
    heads, (keys, values) = config.heads, config.sizes(width)
    rows = [heads * keys, heads * keys, heads * values, heads * values * config.gate, heads, heads * config.decay]
    wq, wk, wv, wg, wb, wa = w["input.weight"].split(rows)
    mixed = torch.cat([linear(x, wq), linear(x, wk), linear(x, wv)], -1)
    mixed = F.silu(short_filter(mixed, w["taps"]) if config.conv else mixed)
    q, k, v = (part.view(batch, length, heads, -1) for part in mixed.split(rows[:3], -1))
    q, k = (y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6) for y in (q, k))
    beta = torch.sigmoid(linear(x, wb)) * (2 if config.allow_neg_eigval else 1)
    alpha = torch.ones(batch, length, heads, dtype=x.dtype)
    if config.decay:
        alpha = torch.exp(-torch.exp(w["A_log"]) * torch.log1p(torch.exp(linear(x, wa) + w["dt_bias"])))
    memory = torch.zeros(batch, heads, values, keys, dtype=x.dtype)         # v k^T, as the paper has it
    outputs, eye = [], torch.eye(keys, dtype=x.dtype)
    for t in range(length):
        a, b = alpha[:, t, :, None, None], beta[:, t, :, None, None]
        kk = k[:, t, :, :, None] * k[:, t, :, None, :]
        memory = memory @ (a * (eye - b * kk)) + b * v[:, t, :, :, None] * k[:, t, :, None, :]
        outputs.append((memory @ q[:, t, :, :, None])[..., 0] / math.sqrt(keys))
    o = torch.stack(outputs, 1)
    o = o / torch.sqrt((o * o).mean(-1, keepdim=True) + 1e-6) * w["norm.weight"]
    o = o.flatten(2) * F.silu(linear(x, wg)) if config.gate else o.flatten(2)
    return linear(o, w["out.weight"])


def mamba2(w, config, x):
    batch, length, width = x.shape
    inner, heads, groups, size = config.expand * width, config.heads(width), config.groups, config.state
    shared = groups * size
    z, xbc, dt = (linear(x, part) for part in w["input.weight"].split([inner, inner + 2 * shared, heads]))
    if config.conv:
        xbc = short_filter(xbc, w["taps"]) + w["bias"]
    u, b, c = F.silu(xbc).split([inner, shared, shared], -1)
    u = u.view(batch, length, heads, -1)
    b, c = (y.view(batch, length, groups, size).repeat_interleave(heads // groups, 2) for y in (b, c))
    dt = torch.log1p(torch.exp(dt + w["dt_bias"]))
    h = torch.zeros(batch, heads, size, config.head_dim, dtype=x.dtype)
    outputs = []
    for t in range(length):
        step = dt[:, t, :, None, None]
        h = torch.exp(-torch.exp(w["A_log"])[:, None, None] * step) * h
        h = h + step * b[:, t, :, :, None] * u[:, t, :, None, :]
        outputs.append((c[:, t, :, :, None] * h).sum(-2) + w["D"][:, None] * u[:, t])
    y = torch.stack(outputs, 1).flatten(2) * F.silu(z)
    y = y.view(batch, length, groups, -1)
    y = (y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-5)).flatten(2)
    return linear(y * w["norm"], w["out.weight"])


def hyena_filter(w, config, width, length):
    """h_j for each long filter: network of sines times window, plus the skip weight at distance 0."""
    filters = config.order - 1
    taps = []
    for j in range(length):
        t = j / config.reach
        angles = [2 * math.pi * f * t for f in range(1, config.bands + 1)]
        h = torch.tensor([t, *map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
        for layer in range(3):
            h = torch.sin(w["frequency"] * (linear(h, w[f"sine_{layer}.weight"]) + w[f"sine_{layer}.bias"]))
        rate = torch.exp(w["log_rate"])
        window = torch.sqrt(2 * rate / config.reach) * torch.exp(-rate * t)
        taps.append(linear(h, w["response.weight"]).view(filters, width) * window + (w["skip"] if j == 0 else 0))
    return torch.stack(taps)


def hyena(w, config, x):
    length, width = x.shape[1:]
    v, last, *gates = short_filter(linear(x, w["input.weight"]), w["taps"]).split(width, -1)
    h = hyena_filter(w, config, width, length)
    for n, gate in enumerate(gates):
        u = gate * v
        v = torch.stack([sum(h[j, n] * u[:, t - j] for j in range(t + 1)) for t in range(length)], 1)
    return linear(last * v, w["out.weight"])


def short_conv(w, config, x):
    b, c, u = linear(x, w["input.weight"]).split(x.shape[-1], -1)
    return linear(c * short_filter(b * u, w["taps"]), w["out.weight"])


def swiglu(w, config, x):
    g = linear(x, w["gate.weight"])
    return linear(g / (1 + torch.exp(-g)) * linear(x, w["up.weight"]), w["down.weight"])


def mlp(w, config, x):
    h = linear(x, w["up.weight"])
    h = {"gelu": lambda: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), "silu": lambda: h / (1 + torch.exp(-h)),
         "squared_relu": lambda: torch.where(h > 0, h * h, 0)}[config.activation]()
    return linear(h, w["down.weight"])


def rms_norm(w, config, x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.eps) * w["weight"]


CASES = [
    (bp.Attention(heads=4, kv_heads=2), 16, attention), (bp.Attention(heads=2, window=3), 8, attention),
    (bp.GatedDeltaNet(heads=2, expand_v=2, allow_neg_eigval=True), 8, gated_delta),
    (bp.GatedDeltaNet(heads=2, head_dim=3, conv=None, gate=False, decay=False), 8, gated_delta),
    (bp.Mamba2(state=3, head_dim=4), 8, mamba2), (bp.Mamba2(state=5, head_dim=2, groups=2, conv=None), 8, mamba2),
    (bp.Hyena(filter_dim=8, bands=3, reach=32), 6, hyena), (bp.Hyena(order=4, filter_dim=8), 4, hyena),
    (bp.ShortConv(kernel=4), 8, short_conv), (bp.SwiGLU(2), 8, swiglu), (bp.RMSNorm(), 8, rms_norm),
    *((bp.MLP(3, activation=name), 8, mlp) for name in ("gelu", "silu", "squared_relu")),
]


@pytest.mark.parametrize(("config", "width", "reference"), CASES, ids=lambda case: type(case).__name__)
def test_operator_computes_its_papers_formula(config, width, reference):
    check_reference(config, width, reference)


def test_deltanet_is_gated_deltanet_that_does_not_fade():
    """One key read back gives the value written last, whatever was written before under that key."""
    from bodyplan.kernels.gated_delta.chunked import chunked_gated_delta

    key = F.normalize(torch.randn(1, 1, 1, 4, dtype=torch.float64), dim=-1).expand(1, 3, 1, 4)
    values = torch.randn(1, 3, 1, 5, dtype=torch.float64)
    o, _ = chunked_gated_delta(key, key, values, log_decay_BTH=torch.zeros(1, 3, 1), beta_BTH=torch.ones(1, 3, 1))
    assert torch.allclose(o, values)
