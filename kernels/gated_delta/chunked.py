"""Gated delta rule by chunks: one triangular solve and matrix products inside a chunk, a loop over the states between.

Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464); with a log decay of 0 it is DeltaNet. The
functions use torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, T time, H heads, G query/key groups (H a multiple of G), R heads of a group, N chunks,
C tokens of a chunk, X = N * B * H chunks of all heads (chunk outermost), Y = B * H, K key width, V value width, D any
width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_gated_delta", "gated_delta_step"]


def to_chunks(x_BTHD: Tensor, num_chunks: int, size: int, heads: int) -> Tensor:
    """Cuts time into chunks and repeats shared heads: [X, C, D], with zeros after the last token."""
    batch, length, groups, width = x_BTHD.shape
    if num_chunks * size > length:
        x_BTHD = F.pad(x_BTHD, (0, 0, 0, 0, 0, num_chunks * size - length))
    x_BNCG1D = x_BTHD.reshape(batch, num_chunks, size, groups, 1, width)
    x_BNCGRD = x_BNCG1D.expand(-1, -1, -1, -1, heads // groups, -1)
    return x_BNCGRD.permute(1, 0, 3, 4, 2, 5).reshape(-1, size, width)


def from_chunks(x_XCD: Tensor, batch: int, length: int, heads: int) -> Tensor:
    """The way back: [B, T, H, D]."""
    size, width = x_XCD.shape[1:]
    x_NBHCD = x_XCD.reshape(-1, batch, heads, size, width)
    return x_NBHCD.permute(1, 0, 3, 2, 4).reshape(batch, -1, heads, width)[:, :length]


def chunked_gated_delta(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """S' = exp(g_t) S_{t-1}; S_t = S' + beta_t k_t^T (v_t - k_t S'); o_t = scale * q_t S_t, for any T >= 1.

    Head h reads group h // (H / G) of q and k. The arithmetic is float32 (float64 for float64 values), whatever the
    inputs. The tokens of a chunk depend on each other through I + A, A strictly lower triangular, which is inverted
    by substitution: the cheaper product (I - A)(I + A^2)(I + A^4)... is wrong by 1e8 when keys repeat.
    Decays are floored at exp(-60), below which they would only make denormal, slow numbers.

    Args:
        k_BTGK: keys, of unit length, else the state may grow without bound.
        log_decay_BTH: g, at most 0. A batch of 1 serves all sequences.
        beta_BTH: writing strength, 0 to 1 (to 2 when negative eigenvalues are wanted).
        state_BHKV: the state before the first token; None stands for zeros.
        chunk: most tokens in one chunk; changes speed and memory, not the result. 32 is best on a CPU.

    Returns:
        The outputs o_BTHV in the dtype of v, and the state after the last token in float32 (or float64).
    """
    batch, length, heads, value_width = v_BTHV.shape
    key_width = k_BTGK.shape[-1]
    num_chunks = -(-length // chunk)
    size = -(-length // num_chunks)
    dtype = torch.promote_types(v_BTHV.dtype, torch.float32)

    q_XCK = to_chunks(q_BTGK.to(dtype), num_chunks, size, heads)
    k_XCK = to_chunks(k_BTGK.to(dtype), num_chunks, size, heads)
    v_XCV = to_chunks(v_BTHV.to(dtype), num_chunks, size, heads)
    beta_XC1 = to_chunks(beta_BTH.to(dtype)[..., None], num_chunks, size, heads)
    g_BTH1 = log_decay_BTH.to(dtype).expand(batch, -1, -1)[..., None]
    g_XC = to_chunks(g_BTH1, num_chunks, size, heads)[..., 0].cumsum(-1)
    if scale != 1.0:
        q_XCK = q_XCK * scale

    # Token i sees j <= i through exp(G_i - G_j). Clamping at 0 before exp keeps j > i finite.
    decay_XCC = (g_XC[:, :, None] - g_XC[:, None, :]).clamp_(-60.0, 0.0).exp_()
    since_start_XC1 = g_XC.clamp_min(-60.0).exp()[..., None]
    until_end_XC1 = (g_XC[:, -1:] - g_XC).clamp_min_(-60.0).exp_()[..., None]

    # From a starting state S the chunk writes M (V - diag(e^G) K S), where M = (I + A)^-1 diag(beta).
    k_XKC = k_XCK.transpose(1, 2)
    a_XCC = torch.bmm(k_XCK * beta_XC1, k_XKC).tril_(-1) * decay_XCC
    beta_XCC = torch.diag_embed(beta_XC1[..., 0])
    m_XCC = torch.linalg.solve_triangular(a_XCC, beta_XCC, upper=False, unitriangular=True)
    minus_k_XCK = k_XCK * -since_start_XC1

    # Hence from chunk to chunk S <- (e^G I - K^T M diag(e^G) K) S + K^T M V: one product per chunk in the loop.
    km_XKC = torch.bmm((k_XCK * until_end_XC1).transpose(1, 2), m_XCC)
    added_XKV = torch.bmm(km_XKC, v_XCV)
    kept_XKK = since_start_XC1[:, -1:] * torch.eye(key_width, dtype=dtype, device=v_XCV.device)
    carried_XKK = torch.baddbmm(kept_XKK, km_XKC, minus_k_XCK)
    if state_BHKV is None:
        state_BHKV = v_XCV.new_zeros(batch, heads, key_width, value_width)
    state_YKV = state_BHKV.to(dtype).reshape(-1, key_width, value_width)
    states = []
    for added_YKV, carried_YKK in zip(added_XKV.chunk(num_chunks), carried_XKK.chunk(num_chunks), strict=True):
        states.append(state_YKV)
        state_YKV = torch.baddbmm(added_YKV, carried_YKK, state_YKV)
    state_XKV = torch.cat(states)

    written_XCV = torch.bmm(m_XCC, torch.baddbmm(v_XCV, minus_k_XCK, state_XKV))
    scores_XCC = torch.bmm(q_XCK, k_XKC).tril_() * decay_XCC
    o_XCV = torch.baddbmm(torch.bmm(scores_XCC, written_XCV), q_XCK * since_start_XC1, state_XKV)
    o_BTHV = from_chunks(o_XCV, batch, length, heads)
    return o_BTHV.to(v_BTHV.dtype), state_YKV.reshape(batch, heads, key_width, value_width)


def gated_delta_step(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `chunked_gated_delta`, same arguments and results; the state is not written to."""
    heads_per_group = v_BTHV.shape[2] // q_BTGK.shape[2]
    dtype = state_BHKV.dtype
    q_BHK, k_BHK, v_BHV = q_BTGK[:, 0].to(dtype), k_BTGK[:, 0].to(dtype), v_BTHV[:, 0].to(dtype)
    if heads_per_group > 1:
        q_BHK = q_BHK.repeat_interleave(heads_per_group, dim=1)
        k_BHK = k_BHK.repeat_interleave(heads_per_group, dim=1)
    state_BHKV = log_decay_BTH[:, 0, :, None, None].to(dtype).exp() * state_BHKV
    answer_BHV = (k_BHK[..., None, :] @ state_BHKV)[..., 0, :]
    write_BHV = beta_BTH[:, 0, :, None].to(dtype) * (v_BHV - answer_BHV)
    state_BHKV = torch.addcmul(state_BHKV, k_BHK[..., :, None], write_BHV[..., None, :])
    o_BHV = ((scale * q_BHK)[..., None, :] @ state_BHKV)[..., 0, :]
    return o_BHV[:, None].to(v_BTHV.dtype), state_BHKV
