"""Gated delta rule by chunks: one triangular solve and matrix products inside a chunk, a loop over the states between.

Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464); with a log decay of 0 it is DeltaNet. The
functions use torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, T time, H heads, G query/key groups, R heads of a group (H = G * R), N chunks, C tokens of a
chunk, K key width, V value width, D any width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_gated_delta", "gated_delta_step"]


def to_chunks(x_BTHD: Tensor, num_chunks: int, size: int, heads_per_group: int) -> Tensor:
    """Cuts time into chunks and lays the heads out by group: [N, B, G, R, C, D], zeros after the last token."""
    batch, length, heads, width = x_BTHD.shape
    if num_chunks * size > length:
        x_BTHD = F.pad(x_BTHD, (0, 0, 0, 0, 0, num_chunks * size - length))
    x_BNCGRD = x_BTHD.reshape(batch, num_chunks, size, heads // heads_per_group, heads_per_group, width)
    return x_BNCGRD.permute(1, 0, 3, 4, 2, 5).contiguous()


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
    inputs. The tokens of a chunk depend on each other through (I + A) X = B, A strictly lower triangular. It is
    solved by substitution: the cheaper product (I - A)(I + A^2)(I + A^4)... is wrong by 1e8 when keys repeat.
    Decays are floored at exp(-60), below which they would only make denormal, slow numbers.

    Args:
        k_BTGK: keys, of unit length, else the state may grow without bound.
        log_decay_BTH: g, at most 0. A batch of 1 serves all sequences.
        beta_BTH: writing strength, 0 to 1 (to 2 when negative eigenvalues are wanted).
        state_BHKV: the state before the first token; None stands for zeros.
        chunk: most tokens in one chunk; changes speed and memory, not the result.

    Returns:
        The outputs o_BTHV in the dtype of v, and the state after the last token in float32 (or float64).
    """
    batch, length, heads, value_width = v_BTHV.shape
    groups, key_width = q_BTGK.shape[2:]
    num_chunks = -(-length // chunk)
    size = -(-length // num_chunks)
    dtype = torch.promote_types(v_BTHV.dtype, torch.float32)

    q_NBGRCK = to_chunks(q_BTGK.to(dtype), num_chunks, size, 1)
    k_NBGRCK = to_chunks(k_BTGK.to(dtype), num_chunks, size, 1)
    v_NBGRCV = to_chunks(v_BTHV.to(dtype), num_chunks, size, heads // groups)
    beta_NBGRC1 = to_chunks(beta_BTH[..., None].to(dtype), num_chunks, size, heads // groups)
    g_NBGRC = to_chunks(log_decay_BTH[..., None].to(dtype), num_chunks, size, heads // groups)[..., 0].cumsum(-1)
    if scale != 1.0:
        q_NBGRCK = q_NBGRCK * scale

    # Token i sees j <= i through exp(G_i - G_j). Clamping at 0 before exp keeps j > i finite.
    decay_NBGRCC = (g_NBGRC[..., :, None] - g_NBGRC[..., None, :]).clamp_(-60.0, 0.0).exp_()
    since_start_NBGRC1 = g_NBGRC.clamp_min(-60.0).exp()[..., None]
    until_end_NBGRC1 = (g_NBGRC[..., -1:] - g_NBGRC).clamp_min_(-60.0).exp_()[..., None]

    # What the chunk writes is X_v - X_k S: X_v from the values alone, X_k S what the starting state S already answers.
    keys_CK_NBGRDC = k_NBGRCK.transpose(-1, -2)
    scaled_k_NBGRCK = k_NBGRCK * beta_NBGRC1
    a_NBGRCC = (scaled_k_NBGRCK @ keys_CK_NBGRDC).tril_(-1) * decay_NBGRCC
    b_NBGRCD = torch.cat([v_NBGRCV * beta_NBGRC1, scaled_k_NBGRCK * since_start_NBGRC1], dim=-1)
    x_NBGRCD = torch.linalg.solve_triangular(a_NBGRCC, b_NBGRCD, upper=False, unitriangular=True)

    # Between chunks the state is S <- (kept I - K^T X_k) S + K^T X_v.
    y_NBGRKD = (k_NBGRCK * until_end_NBGRC1).transpose(-1, -2) @ x_NBGRCD
    added_NBGRKV, erased_NBGRKK = y_NBGRKD.split([value_width, key_width], dim=-1)
    eye_KK = torch.eye(key_width, dtype=dtype, device=v_BTHV.device)
    carried_NBGRKK = since_start_NBGRC1[..., -1:, :] * eye_KK - erased_NBGRKK
    if state_BHKV is None:
        state_BHKV = v_NBGRCV.new_zeros(batch, heads, key_width, value_width)
    state_BGRKV = state_BHKV.to(dtype).reshape(batch, groups, heads // groups, key_width, value_width)
    states = []
    for carried_BGRKK, added_BGRKV in zip(carried_NBGRKK, added_NBGRKV, strict=True):
        states.append(state_BGRKV)
        state_BGRKV = carried_BGRKK @ state_BGRKV + added_BGRKV
    states_NBGRKV = torch.stack(states)

    values_NBGRCV, answers_NBGRCK = x_NBGRCD.split([value_width, key_width], dim=-1)
    written_NBGRCV = values_NBGRCV - answers_NBGRCK @ states_NBGRKV
    o_NBGRCV = ((q_NBGRCK @ keys_CK_NBGRDC).tril_() * decay_NBGRCC) @ written_NBGRCV
    o_NBGRCV += (q_NBGRCK * since_start_NBGRC1) @ states_NBGRKV

    o_BTHV = o_NBGRCV.permute(1, 0, 4, 2, 3, 5).reshape(batch, num_chunks * size, heads, value_width)
    return o_BTHV[:, :length].to(v_BTHV.dtype), state_BGRKV.reshape(batch, heads, key_width, value_width)


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
