"""Networks trained while they read, one token and one gradient at a time: the specification of `chunked.py`.

Shape suffixes: B batch, T time, H heads, K key width, V value width, I and O inputs and outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["naive_neural_memory", "naive_newton_schulz"]


def network(layers: list[Tensor], x_BHI: Tensor) -> Tensor:
    """A perceptron of [B, H, I, O] layers with SiLU between."""
    for number, layer_BHIO in enumerate(layers):
        if number:
            x_BHI = x_BHI * torch.sigmoid(x_BHI)
        x_BHI = torch.einsum("bhi,bhio->bho", x_BHI, layer_BHIO)
    return x_BHI


def naive_newton_schulz(x_IO: Tensor, steps: int = 5) -> Tensor:
    """Nearly the orthogonal matrix closest to x: a quintic iteration of Muon, from x over its norm."""
    x_IO = x_IO * torch.rsqrt((x_IO * x_IO).sum((-2, -1), keepdim=True) + 1e-12)
    for _ in range(steps):
        gram = x_IO @ x_IO.mT
        x_IO = 3.4445 * x_IO - 4.775 * gram @ x_IO + 2.0315 * gram @ gram @ x_IO
    return x_IO


def naive_neural_memory(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, *, layers: list[Tensor], keep_BTH: Tensor,
                        step_BTH: Tensor, momentum_BTH: Tensor, weight_BTH: Tensor, window: int, chunk: int,
                        muon: bool) -> Tensor:
    """S_t = eta_t S_{t-1} - grad_t, M_t = keep_t M_{t-1} + S_t, read as M_t(q_t).

    grad_t is theta_t times the gradient of half the squared error, summed over the last `window` tokens with their weights,
    of the memory the chunk of token t began with. With `muon` theta_t scales Newton-Schulz of S_t instead.
    """
    memory, surprise, rows = list(layers), [torch.zeros_like(layer) for layer in layers], []
    start = memory
    for t in range(q_BTHK.shape[1]):
        if t % chunk == 0:
            start = memory
        frozen = [layer if layer.requires_grad else layer.clone().requires_grad_() for layer in start]
        loss: Any = sum((weight_BTH[:, i, :, None] * (network(frozen, k_BTHK[:, i]) - v_BTHV[:, i]) ** 2).sum() / 2
                        for i in range(max(0, t + 1 - window), t + 1))
        gradients = torch.autograd.grad(loss, frozen, create_graph=True)
        eta, theta, keep = (g[:, t, :, None, None] for g in (momentum_BTH, step_BTH, keep_BTH))
        surprise = [eta * s - (1 if muon else theta) * g for s, g in zip(surprise, gradients, strict=True)]
        written = [theta * naive_newton_schulz(s) for s in surprise] if muon else surprise
        memory = [keep * m + w for m, w in zip(memory, written, strict=True)]
        rows.append(network(memory, q_BTHK[:, t]))
    return torch.stack(rows, 1)
