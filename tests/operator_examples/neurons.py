"""Operators of neurons that fire, and what references of others say a neuron does."""

from __future__ import annotations

import bodyplan as bp
import torch
from bodyplan.space.operator import Operator

from .windows import batch_norm

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS", "Spike", "spiked"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "FrameTokenizer": [
        (bp.FrameTokenizer(features=12, layers=3), 16), (bp.FrameTokenizer(features=5, layers=2), 8),
        (bp.FrameTokenizer(features=12, layers=3, spiking=True), 16), (bp.FrameTokenizer(7, layers=1, spiking=True), 8)],
}
UNVARIED: dict[str, dict[str, str]] = {"FrameTokenizer": {"taps": "a frame and its two neighbours"}}
UNVARIED_OPTIONS: dict[str, dict[str, str]] = {}


class Spike(torch.autograd.Function):
    """A step whose gradient is that of sigmoid(4 z): 4 s (1 - s)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
        return grad * 4 * s * (1 - s)


def spiked(w, x, prefix, threshold=1.0):
    """Neurons of time constant 2 along the tokens, behind the norm whose weights start with the prefix."""
    if f"{prefix}norm.running_mean" in w:
        x = batch_norm(w, x, f"{prefix}norm.")
    else:
        x = x * w[f"{prefix}norm.weight"] + w[f"{prefix}norm.bias"]
    v, found = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        v = v / 2 + x[:, t] / 2
        found.append(Spike.apply(v - threshold))
        v = torch.where(found[-1].detach() == 1, torch.zeros_like(v), v)             # gone: no gradient by what was left
    return torch.stack(found, 1)


def along(x, weight):
    """Three taps over the tokens, the middle one at the token itself."""
    total = 0
    for tap, shift in enumerate((-1, 0, 1)):
        rows = [x[:, t + shift] if 0 <= t + shift < x.shape[1] else torch.zeros_like(x[:, 0]) for t in range(x.shape[1])]
        total = total + torch.einsum("btn,dn->btd", torch.stack(rows, 1), weight[..., tap])
    return total


def frame_tokenizer(w, config, x):
    for i in range(config.layers):
        x = along(x, w[f"convs.{i}.weight"])
        if not config.spiking:
            x = batch_norm(w, x.clamp(min=0), f"norms.{i}.")
        elif i < config.layers - 1:
            x = spiked(w, x, f"spikes.{i}.")
    last = spiked(w, x, f"spikes.{config.layers - 1}.") if config.spiking else x
    return x + along(last, w["position.weight"])


def normed_mlp(w, config, x):
    def linear(part, name):
        y = torch.einsum("bti,oi->bto", part, w[f"{name}.weight"])
        return y + w[f"{name}.bias"] if config.bias else y

    def norm(y, name):
        if config.norm == "batch":
            return batch_norm(w, y, f"{name}.")
        y = y - y.mean(-1, keepdim=True)
        return y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    if config.activation == "spike":
        return linear(spiked(w, linear(spiked(w, x, "up_spikes."), "up"), "down_spikes."), "down")
    h = norm(linear(x, "up"), "up_norm")
    if config.activation == "relu":
        h = h.clamp(min=0)
    else:
        h = h / (1 + torch.exp(-h)) if config.activation == "silu" else h * (1 + torch.erf(h / 2**0.5)) / 2
    y = norm(linear(h, "down"), "down_norm")
    return y.clamp(min=0) if config.last else y


REFERENCES = {"FrameTokenizer": frame_tokenizer, "NormedMLP": normed_mlp}
