"""State spaces and memories that learn while they read: each with a reference from its paper's formula."""

from __future__ import annotations

import math

import bodyplan as bp
import torch
import torch.nn.functional as F
from bodyplan.kernels.legendre import naive_legendre, naive_legendre_system
from bodyplan.kernels.neural_memory import naive_neural_memory
from bodyplan.kernels.wkv import naive_bidirectional_wkv, naive_wkv
from bodyplan.space.operator import Operator
from bodyplan.testing import Reference
from torch import Tensor

from .neurons import spiked

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "Mamba": [
        (bp.Mamba(state=4, bidirectional=True), 24), (bp.Mamba(state=4, expand=1, dt_rank=3), 24),
        (bp.Mamba(state=3, conv=2), 16), (bp.Mamba(state=2, expand=1, conv=None), 8)],
    "Atlas": [
        (bp.Atlas(heads=2, chunk=8, window=3), 8),
        (bp.Atlas(heads=1, head_dim=3, depth=1, inner="gd", chunk=8, window=10, conv=None, rate=0.3), 8),
        (bp.Atlas(head_dim=3, depth=3, expand=1, inner="momentum", chunk=16, window=1, degree=1, conv=2), 6)],
    "NeuralMemory": [
        (bp.NeuralMemory(heads=4), 16), (bp.NeuralMemory(heads=2, chunk=8, depth=1, conv=None), 12),
        (bp.NeuralMemory(heads=1, head_dim=4, chunk=5, depth=3, expand=1, inner="gd", rate=0.2), 8),
        (bp.NeuralMemory(heads=3, chunk=1, depth=1, inner="gd", conv=3), 12)],
    "DeltaNet": [
        (bp.DeltaNet(heads=2, expand_v=2), 32), (bp.DeltaNet(heads=1, head_dim=8), 16),
        (bp.DeltaNet(heads=2, conv=3, allow_neg_eigval=True), 24), (bp.DeltaNet(heads=2, conv=None), 24)],
    "Extractor": [
        (bp.Extractor("she", reach=5), 16), (bp.Extractor("he", reach=20), 16), (bp.Extractor("we", reach=3), 8),
        (bp.Extractor("me", reach=7), 8), (bp.Extractor("she", reach=2), 8)],
    "HiddenStateMixer": [
        (bp.HiddenStateMixer(state=6, expand=2), 16), (bp.HiddenStateMixer(state=4, kernel=1), 8)],
    "HyenaND": [
        (bp.HyenaND(order=3, filter_dim=8, bands=3), 16), (bp.HyenaND(directions=1, filter_dim=4, bands=2, conv=1), 8),
        (bp.HyenaND(directions=2, filter_dim=8, bands=2, reach=5), 12)],
    "LMU": [(bp.LMU(order=8, signals=2), 24), (bp.LMU(theta=20.0), 16), (bp.LMU(order=5, theta=7.5), 8),
            (bp.LMU(order=8, signals=2, spiking=True, norm="affine"), 16),
            (bp.LMU(theta=20.0, spiking=True, norm="affine"), 8)],
    "Orchid": [
        (bp.Orchid(order=3, filter_dim=8, bands=3), 16), (bp.Orchid(filter_dim=4, bands=2, kernel=1, conv=1, reach=9), 8),
        (bp.Orchid(condition="correlation", filter_dim=8, bands=3, kernel=3), 12)],
    "RWKV": [(bp.RWKV(decay_rank=6), 32), (bp.RWKV(), 24), (bp.RWKV(decay_rank=3), 16)],
    "Scanned": [
        (bp.Scanned(bp.Mamba(state=3, expand=1)), 16), (bp.Scanned(bp.Mamba(state=2, expand=1), shared=True, group=5), 8),
        (bp.Scanned(bp.Mamba(state=2, expand=2, conv=2, dt_rank=2), paths=("nested", "rows_back"), group=6), 12)],
    "SelectiveChannelMixer": [
        (bp.SelectiveChannelMixer(size=8, state=3), 16), (bp.SelectiveChannelMixer(size=4, state=2, expand=1, conv=2), 12),
        (bp.SelectiveChannelMixer(size=2, state=2, conv=None, dt_rank=2), 4)],
    "VisionRWKV": [(bp.VisionRWKV(), 16), (bp.VisionRWKV(), 8)],
    "VirtualNode": [
        (bp.VirtualNode(ratio=2), 32), (bp.VirtualNode("sum", ratio=1), 16), (bp.VirtualNode(bidirectional=False), 24)],
}

UNVARIED: dict[str, dict[str, str]] = {
    "DeltaNet": {"gate": "it has none", "decay": "it has none"},
    "HyenaND": {"time": "one positional feature is the distance itself", "ways": "rows and columns"},
    "Orchid": {"time": "one positional feature is the distance itself", "ways": "a sequence has one"},
    "VisionRWKV": {"mixes": "for receptance, key and value"},
    "Atlas": {"one": "one monomial has degree 0"},
    "NeuralMemory": {"window_weight": "it has no window", "one": "keys as they are", "squares": "keys as they are"},
    "HiddenStateMixer": {"skip": "one number"},
}

UNVARIED_OPTIONS: dict[str, dict[str, str]] = {
    "HiddenStateMixer": {"tells": "needs what reads the states: run by their stages"},
}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...d,fd->...f", x, weight)


def short_filter(x_BTD: Tensor, taps_DW: Tensor) -> Tensor:
    """y_t = sum over j of w_j x_{t - W + 1 + j}, term by term."""
    width, rows = taps_DW.shape[1], []
    for t in range(x_BTD.shape[1]):
        rows.append(sum(taps_DW[:, j] * x_BTD[:, s] for j, s in enumerate(range(t - width + 1, t + 1)) if s >= 0))
    return torch.stack(rows, 1)


# -- Mamba -------------------------------------------------------------------------------------------------------------

def s6(w, prefix, config, x):
    """The selective state space alone, one token, channel and state after the other."""
    if config.conv:
        x = short_filter(x, w[f"{prefix}.taps"]) + w[f"{prefix}.bias"]
    x = x * torch.sigmoid(x)
    rank, n = w[f"{prefix}.dt.weight"].shape[1], config.state
    low, b, c = linear(x, w[f"{prefix}.select.weight"]).split([rank, n, n], -1)
    dt = torch.log1p(torch.exp(linear(low, w[f"{prefix}.dt.weight"]) + w[f"{prefix}.dt_bias"]))
    y = torch.zeros_like(x)
    rows = []
    h = [torch.zeros_like(x[:, 0]) for _ in range(n)]
    for t in range(x.shape[1]):
        y = w[f"{prefix}.D"] * x[:, t]
        for i in range(n):
            rate = -(i + 1) * torch.exp(w[f"{prefix}.A_log"][:, i])
            h[i] = torch.exp(dt[:, t] * rate) * h[i] + dt[:, t] * b[:, t, i, None] * x[:, t]
            y = y + c[:, t, i, None] * h[i]
        rows.append(y)
    return torch.stack(rows, 1)


def mamba(w, config, x):
    u, z = linear(x, w["input.weight"]).chunk(2, -1)
    y = s6(w, "ssm", config, u)
    if config.bidirectional:
        y = y + s6(w, "backward_ssm", config, u.flip(1)).flip(1)
    return linear(y * F.silu(z), w["out.weight"])


def selective_channel_mixer(w, config, x):
    """Each token as a sequence of its groups of channels."""
    inside = {name.removeprefix("scan."): part for name, part in w.items()}
    scan = bp.Mamba(config.state, config.expand, config.conv, bidirectional=True)
    tokens = [mamba(inside, scan, token.unflatten(-1, (-1, config.size))).flatten(1) for token in x.unbind(1)]
    return torch.stack(tokens, 1)


# -- DeltaNet ----------------------------------------------------------------------------------------------------------

def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def head_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def delta_net(w, config, x):
    """S_t = S_{t-1} (I - b k k^T) + b v k^T, read by q."""
    heads = config.heads
    keys = config.head_dim or x.shape[-1] // heads
    sizes = [heads * keys, heads * keys, heads * keys * config.expand_v]
    mixed = linear(x, w["input.weight"][:sum(sizes)])
    mixed = F.silu(short_filter(mixed, w["taps"]) if config.conv else mixed)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.split(sizes, -1))
    q, k = unit(q), unit(k)
    beta = torch.sigmoid(linear(x, w["input.weight"][sum(sizes):])) * (2 if config.allow_neg_eigval else 1)
    memory, rows = torch.zeros(len(x), heads, v.shape[-1], keys, dtype=x.dtype), []
    for t in range(x.shape[1]):
        b, kt, vt = beta[:, t, :, None, None], k[:, t, :, None], v[:, t, :, :, None]
        memory = memory - b * (memory @ kt.mT) @ kt + b * vt @ kt
        rows.append((memory @ q[:, t, :, :, None])[..., 0] / keys**0.5)
    return linear(head_norm(torch.stack(rows, 1), w["norm.weight"]).flatten(2), w["out.weight"])


# -- memories that learn -----------------------------------------------------------------------------------------------

def monomials(x: Tensor, degree: int) -> Tensor:
    if degree == 1:
        return x
    pairs = torch.einsum("...i,...j->...ij", x, x).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs / math.sqrt(2)], -1) / math.sqrt(2.5)


def learning_memory(w, config, x):
    """One token after the other, the gradient of the loss by autograd."""
    heads, has_momentum = config.heads, config.inner != "gd"
    size = heads * (config.head_dim or x.shape[-1] // heads)
    sizes = [3 * size, size, heads, heads, heads * has_momentum, heads * (config.window > 1)]
    mixed, gate, keep, step, momentum, weight = linear(x, w["input.weight"]).split(sizes, -1)
    mixed = F.silu(short_filter(mixed, w["taps"]) if config.conv else mixed)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.chunk(3, -1))
    q, k = monomials(unit(q), config.degree), monomials(unit(k), config.degree)
    keep, step = torch.sigmoid(keep + w["keep_bias"]), torch.sigmoid(step + w["step_bias"])
    step = step * (config.rate or (0.02 if config.inner == "muon" else 1 / config.chunk))
    momentum = torch.sigmoid(momentum + w["momentum_bias"]) if has_momentum else torch.zeros_like(keep)
    between = [f"between_{n}" for n in range(1, config.depth - 1)]
    names = ["first", *between, "last"] if config.depth > 1 else ["only"]
    layers = [w[f"memory.{name}"].mT.expand(len(x), -1, -1, -1) for name in names]
    y = naive_neural_memory(
        q, k, v, layers=layers, keep_BTH=keep, step_BTH=step if config.inner == "muon" else step * (1 - momentum),
        momentum_BTH=momentum, weight_BTH=torch.sigmoid(weight) if config.window > 1 else torch.ones_like(keep),
        window=config.window, chunk=config.chunk, muon=config.inner == "muon")
    return linear(head_norm(y, w["norm.weight"]).flatten(2) * F.silu(gate), w["out.weight"])


# -- memories without a data-dependent decay ---------------------------------------------------------------------------

def extractor(w, config, x):
    """Every pair of tokens on its own."""
    rows = []
    for t in range(x.shape[1]):
        total = torch.zeros_like(x[:, 0])
        for lag in range(min(t + 1, config.reach)):
            tap, old = config.reach - 1 - lag, x[:, t - lag]
            if config.variant == "she":
                old = old @ w["matrices"][:, :, tap].T
            elif config.variant == "he":
                old = old * w["channels"][:, tap]
            elif config.variant == "we":
                old = old * w["numbers"][tap]
            total = total + old
        total = total / min(t + 1, config.reach) ** 0.5
        rows.append((linear(x[:, t], w["gate.weight"]) + w["gate.bias"]) * total)
    return linear(torch.stack(rows, 1), w["out.weight"])


def lmu(w, config, x):
    """The recurrence, with the matrix exponential as a series."""
    if config.spiking:
        return spiking_lmu(w, config, x)
    order = config.order or x.shape[-1]
    u = torch.relu(linear(x, w["signal.weight"]) + w["signal.bias"])
    memory, _ = naive_legendre(u, naive_legendre_system(order, config.theta))
    h = torch.relu(linear(torch.cat([memory.flatten(2), x], -1), w["hidden.weight"]) + w["hidden.bias"])
    return linear(h, w["out.weight"]) + w["out.bias"]


def spiking_lmu(w, config, x):
    """All neurons and the memory one token after the other, a batch norm over all tokens before each."""
    order = config.order or 2 * x.shape[-1]
    s = spiked(w, x, "input_spikes.", 0.5)
    u = spiked(w, linear(s, w["signal.weight"]) + w["signal.bias"], "signal_spikes.")
    memory, _ = naive_legendre(u, naive_legendre_system(order, config.theta))
    m = spiked(w, memory.flatten(2), "memory_spikes.")
    h = spiked(w, linear(torch.cat([m, s], -1), w["hidden.weight"]) + w["hidden.bias"], "hidden_spikes.")
    return linear(h, w["out.weight"]) + w["out.bias"]


def virtual_node(w, config, x):
    rows = []
    for t in range(x.shape[1]):
        seen = x if config.bidirectional else x[:, :t + 1]
        node = sum(seen.unbind(1)) / (seen.shape[1] if config.pool == "mean" else 1)
        h = torch.relu(linear(node, w["up.weight"]) + w["up.bias"])
        rows.append(linear(h, w["down.weight"]) + w["down.bias"])
    return torch.stack(rows, 1)


# -- RWKV --------------------------------------------------------------------------------------------------------------

def rwkv(w, config, x):
    before = shifted(x, 1, 1)
    r, k, v, *more = (mix * x + (1 - mix) * before for mix in w["mix"])
    exponent = w["decay"].expand_as(x)
    for extra in more:
        exponent = exponent + linear(torch.tanh(linear(extra, w["decay_down.weight"])), w["decay_up.weight"])
    y = naive_wkv(linear(k, w["key.weight"]), linear(v, w["value.weight"]), log_decay_BTD=-torch.exp(exponent),
                  bonus_D=w["bonus"])
    return linear(torch.sigmoid(linear(r, w["receptance.weight"])) * y, w["out.weight"])


def vision_rwkv(w, config, x):
    near = torch.zeros_like(x)
    for way, (by, dim) in enumerate([(1, 2), (-1, 2), (1, 1), (-1, 1)]):
        near[..., way::4] = shifted(x, by, dim)[..., way::4]
    r, k, v = ((mix * x + (1 - mix) * near).flatten(1, 2) for mix in w["mix"])
    y = naive_bidirectional_wkv(linear(k, w["key.weight"]), linear(v, w["value.weight"]),
                                log_decay_D=-w["decay"] / k.shape[1], bonus_D=w["bonus"])
    return linear(torch.sigmoid(linear(r, w["receptance.weight"])) * y, w["out.weight"]).view(x.shape)


# -- grids -------------------------------------------------------------------------------------------------------------

def grid_filter(x_BHWD: Tensor, taps_DKK: Tensor) -> Tensor:
    """One square filter per channel, tap by tap over shifted copies."""
    rows, columns = x_BHWD.shape[1:3]
    half = taps_DKK.shape[-1] // 2
    padded = F.pad(x_BHWD, (0, 0, half, half, half, half))
    return sum(taps_DKK[:, i, j] * padded[:, i:i + rows, j:j + columns]
               for i in range(2 * half + 1) for j in range(2 * half + 1))


def hidden_state_mixer(w, config, x):
    b, c, dt = grid_filter(linear(x, w["select.weight"]), w["taps"]).split(config.state, -1)
    total = torch.exp(dt).sum((1, 2), keepdim=True)
    h = torch.einsum("bhwn,bhwd->bnd", torch.exp(dt) / total * b, x)
    u, z = linear(h, w["mix.weight"]).chunk(2, -1)
    h = linear(u * z * torch.sigmoid(z) + w["skip"] * u, w["out.weight"])
    return torch.einsum("bhwn,bnd->bhwd", c, h)


# -- long filters ------------------------------------------------------------------------------------------------------

def long_filter(w, config, place, filters):
    """One tap of every implicit filter, at the distances `place`."""
    features = []
    for distance in place:
        t = distance / config.reach
        angles = [2 * math.pi * f * t for f in range(1, config.bands + 1)]
        features += [t, *map(math.cos, angles), *map(math.sin, angles)]
    h = torch.tensor(features, dtype=torch.float64)
    for layer in range(3):
        h = torch.sin(w["filter.frequency"] * (linear(h, w[f"filter.sine_{layer}.weight"]) + w[f"filter.sine_{layer}.bias"]))
    tap = linear(h, w["filter.response.weight"]).view(filters, -1)
    for distance, log_rate in zip(place, w["filter.log_rate"], strict=True):
        rate = torch.exp(log_rate)
        tap = tap * torch.sqrt(2 * rate / config.reach) * torch.exp(-rate * distance / config.reach)
    return tap + w["filter.skip"] if not any(place) else tap


def hyena_nd(w, config, x):
    """Quadrant by quadrant, tap by tap."""
    rows, columns = x.shape[1:3]
    filters = config.directions * (config.order - 1)
    taps = {(i, j): long_filter(w, config, (i, j), filters) for i in range(rows) for j in range(columns)}
    v, out_gate, *gates = grid_filter(linear(x, w["input.weight"]), w["taps"]).chunk(config.order + 1, -1)
    signs = [(1, 1), (-1, -1), (-1, 1), (1, -1)][:config.directions]
    for n, gate in enumerate(gates):
        y = torch.zeros_like(v)
        for q, (down, across) in enumerate(signs):
            for (i, j), tap in taps.items():
                moved = shifted(shifted(gate * v, down * i, 1), across * j, 2)
                y = y + w["mix"][q] * tap[q * (config.order - 1) + n] * moved
        v = y
    return linear(out_gate * v, w["out.weight"])


def shifted(x: Tensor, by: int, dim: int) -> Tensor:
    """Entry i of the result is entry i - by of x, zero where there is none."""
    rolled, index = x.roll(by, dim), torch.arange(x.shape[dim]) - by
    inside = ((index >= 0) & (index < x.shape[dim])).view([-1 if d == dim else 1 for d in range(x.ndim)])
    return torch.where(inside, rolled, torch.zeros((), dtype=x.dtype))


def centred(x: Tensor, taps_DW: Tensor) -> Tensor:
    half = taps_DW.shape[1] // 2
    return sum(taps_DW[:, j] * shifted(x, half - j, 1) for j in range(taps_DW.shape[1]))


def orchid(w, config, x):
    """Sums around the circle; spectra as products with the matrix of the transform."""
    length, width, filters = x.shape[1], x.shape[2], config.order - 1
    turn = torch.arange(length, dtype=torch.float64)
    dft = torch.exp(-2j * math.pi * turn[:, None] * turn / length) / length**0.5
    u = linear(x, w["input.weight"])
    source = u[..., -width:].repeat(1, 1, filters)
    first = torch.einsum("ft,btd->bfd", dft, centred(source, w["first"]).to(dft.dtype))
    if config.condition == "magnitude":
        half = length // 2 + 1
        magnitude = torch.sqrt(first.real**2 + first.imag**2)[:, :half]
        spectrum = centred(magnitude, w["second"])
        spectrum = torch.cat([spectrum, spectrum[:, 1:length - half + 1].flip(1)], 1).to(dft.dtype)
    else:
        spectrum = first.conj() * torch.einsum("ft,btd->bfd", dft, centred(source, w["second"]).to(dft.dtype))
    adapted = torch.einsum("ft,bfd->btd", dft.conj(), spectrum).real / length**0.5
    taps = torch.stack([long_filter(w, config, (t,), config.order) for t in range(length)])
    out_gate, *gates, v = centred(u, w["taps"]).chunk(config.order + 1, -1)
    for n, gate in enumerate(gates):
        v = around(gate * v, taps[:, n] + adapted[..., n * width:(n + 1) * width])
    return linear(out_gate * v + around(x, taps[:, -1].expand_as(x)), w["out.weight"])


def around(x: Tensor, filter_BTD: Tensor) -> Tensor:
    return sum(filter_BTD[:, j, None] * x.roll(j, 1) for j in range(x.shape[1]))


def scanned(w, config, x):
    """Place by place along every path."""
    rows, columns = x.shape[1:3]
    places = [(r, c) for r in range(rows) for c in range(columns)]
    by_columns = sorted(places, key=lambda p: (p[1], p[0]))
    bits = [sum((r >> i & 1) << 2 * i + 1 | (c >> i & 1) << 2 * i for i in range(8)) for r, c in places]
    orders = {"rows": places, "columns": by_columns, "rows_back": places[::-1], "columns_back": by_columns[::-1],
              "nested": [p for _, p in sorted(zip(bits, places, strict=True))]}
    total = torch.zeros_like(x)
    groups = -(-len(places) // (config.group or len(places)))
    size = -(-len(places) // groups)
    for number, path in enumerate(config.paths):
        prefix = f"mixers.{0 if config.shared else number}."
        inside = {name.removeprefix(prefix): part for name, part in w.items() if name.startswith(prefix)}
        for start in range(0, len(places), size):
            visited = orders[path][start:start + size]
            y = mamba(inside, config.mixer, torch.stack([x[:, r, c] for r, c in visited], 1))
            spread = torch.zeros_like(x)
            for t, (r, c) in enumerate(visited):
                spread[:, r, c] = y[:, t]
            total = total + spread
    return total / len(config.paths)


REFERENCES: dict[str, Reference] = {
    "Atlas": learning_memory, "DeltaNet": delta_net, "Extractor": extractor, "HiddenStateMixer": hidden_state_mixer,
    "HyenaND": hyena_nd, "LMU": lmu, "Mamba": mamba, "NeuralMemory": learning_memory, "Orchid": orchid, "RWKV": rwkv,
    "Scanned": scanned, "SelectiveChannelMixer": selective_channel_mixer, "VirtualNode": virtual_node,
    "VisionRWKV": vision_rwkv}
