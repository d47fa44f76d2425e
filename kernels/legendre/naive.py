"""The Legendre memory, one token at a time: the specification of `fft.py`.

Shape suffixes: B batch, T time, C signals, Q order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["naive_legendre", "naive_legendre_system"]


def naive_legendre_system(order: int, theta: float, terms: int = 80) -> Tensor:
    """[Q, Q + 1] in float64: the matrix and the input vector of one token, under zero-order hold.

    theta m' = A m + B u with A_ij = (2i + 1) (-1 if i < j else (-1)^(i - j + 1)) and B_i = (2i + 1) (-1)^i. The series of
    the exponential is summed on a 2^-10 of the token and squared back.
    """
    full = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    for i in range(order):
        for j in range(order):
            full[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1))
        full[i, order] = (2 * i + 1) * (-1) ** i
    small, total = full / theta / 1024, torch.eye(order + 1, dtype=torch.float64)
    term = total
    for n in range(1, terms):
        term = term @ small / n
        total = total + term
    for _ in range(10):
        total = total @ total
    return total[:order]


def naive_legendre(u_BTC: Tensor, system_QR: Tensor, state_BCQ: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """m_t = A m_{t-1} + B u_t for every signal; returns all m, [B, T, C, Q], and the last."""
    batch, length, signals = u_BTC.shape
    a_QQ, b_Q = system_QR[:, :-1], system_QR[:, -1]
    m_BCQ = u_BTC.new_zeros(batch, signals, len(b_Q)) if state_BCQ is None else state_BCQ
    outputs = []
    for t in range(length):
        m_BCQ = torch.einsum("qr,bcr->bcq", a_QQ, m_BCQ) + u_BTC[:, t, :, None] * b_Q
        outputs.append(m_BCQ)
    return torch.stack(outputs, dim=1), m_BCQ
