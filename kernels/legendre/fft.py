"""The Legendre memory by its impulse response, O(T log T), and one step for decoding.

The parallel form of the Legendre memory unit (Voelker, Kajic and Eliasmith 2019; Chilkuri and Eliasmith 2021, arXiv
2102.11417). The functions use torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, T time, C signals, Q order, R order + 1, F frequencies (T + 1), L powers.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fft_legendre", "legendre_step", "legendre_system"]


def legendre_system(order: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[Q, Q + 1]: the matrix of one token and, last, its input vector, exact under zero-order hold.

    The coefficients of Legendre polynomials over the last `theta` tokens. Computed in float64 on the CPU, whatever dtype
    and device are asked for: the exponential of a matrix with large entries of both signs.
    """
    where = device if device.type == "meta" else torch.device("cpu")
    degree_Q = torch.arange(order, dtype=torch.float64, device=where)
    sign_Q = 1.0 - 2.0 * torch.remainder(degree_Q, 2.0)
    lower_QQ = -sign_Q[:, None] * sign_Q
    a_QQ = (2 * degree_Q + 1)[:, None] * torch.where(degree_Q[:, None] < degree_Q, -torch.ones_like(lower_QQ), lower_QQ)
    b_Q1 = ((2 * degree_Q + 1) * sign_Q)[:, None]
    rate_RR = torch.cat([torch.cat([a_QQ, b_Q1], dim=1), a_QQ.new_zeros(1, order + 1)]) / theta
    system_QR: Tensor = torch.linalg.matrix_exp(rate_RR)[:order].to(device=device, dtype=dtype)
    return system_QR


def powers_of(a_QQ: Tensor, start_CQ: Tensor, count: int) -> Tensor:
    """start, A start, A^2 start, ..., [count, ..., Q], by doubling: the matrix is squared log2(count) times."""
    powers_LCQ, power_QQ = start_CQ[None], a_QQ
    while len(powers_LCQ) < count:
        powers_LCQ = torch.cat([powers_LCQ, powers_LCQ @ power_QQ.t()])
        power_QQ = power_QQ @ power_QQ
    return powers_LCQ[:count]


def fft_legendre(u_BTC: Tensor, system_QR: Tensor, state_BCQ: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """m_t = A m_{t-1} + B u_t for every signal: all m, [B, T, C, Q], and the last, in float32 at least."""
    length, dtype = u_BTC.shape[1], system_QR.dtype
    a_QQ, b_Q = system_QR[:, :-1], system_QR[:, -1]
    response_TQ = powers_of(a_QQ, b_Q, length)
    u_BC1F = torch.fft.rfft(u_BTC.transpose(1, 2).to(dtype), n=2 * length)[:, :, None]
    response_QF = torch.fft.rfft(response_TQ.t(), n=2 * length)
    m_BCQT = torch.fft.irfft(u_BC1F * response_QF, n=2 * length)[..., :length]
    m_BTCQ = m_BCQT.permute(0, 3, 1, 2)
    if state_BCQ is not None:
        m_BTCQ = m_BTCQ + powers_of(a_QQ, state_BCQ.to(dtype) @ a_QQ.t(), length).transpose(0, 1)
    return m_BTCQ, m_BTCQ[:, -1].clone()


def legendre_step(u_BTC: Tensor, system_QR: Tensor, state_BCQ: Tensor) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `fft_legendre`, same arguments and results; the state is not written to."""
    u_BC1 = u_BTC[:, 0, :, None].to(state_BCQ.dtype)
    state_BCQ = state_BCQ @ system_QR[:, :-1].t() + u_BC1 * system_QR[:, -1]
    return state_BCQ[:, None], state_BCQ
