"""Scalar-decay linear recurrence by chunks: matrix products inside a chunk, a short loop over the states between.

One recurrence, many mixers: linear attention (decay 1), RetNet and Lightning (a constant decay per head), and Mamba-2
(q = C, k = B, v = dt * x, log decay = dt * A; Dao and Gu 2024, arXiv 2405.21060). The functions use torch alone, so
that an exported model can carry their source.

Shape suffixes: B batch, T time, H heads, G query/key groups (H a multiple of G), R heads of a group, N chunks,
C tokens of a chunk, X = N * B * H chunks of all heads (chunk outermost), Y = B * H, K key width, V value width, D any
width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_linear_recurrence", "linear_recurrence_step"]


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


def chunked_linear_recurrence(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTH: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t-1} + k_t^T v_t, then o_t = scale * q_t S_t, for any T >= 1.

    Head h reads group h // (H / G) of q and k. The arithmetic is float32 (float64 for float64 values), whatever the
    inputs. Decays are floored at exp(-60): weights that small change nothing, but below exp(-87) they turn into
    denormal numbers, which a CPU multiplies many times slower.

    Args:
        log_decay_BTH: g, at most 0. A batch of 1 serves all sequences.
        state_BHKV: the state before the first token; None stands for zeros.
        chunk: most tokens in one chunk; changes speed and memory, not the result. 32 is best on a CPU, 64 to 128
            on a GPU.

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
    g_BTH1 = log_decay_BTH.to(dtype).expand(batch, -1, -1)[..., None]
    g_XC = to_chunks(g_BTH1, num_chunks, size, heads)[..., 0].cumsum(-1)
    if scale != 1.0:
        q_XCK = q_XCK * scale

    # Inside a chunk token i sees j <= i through exp(G_i - G_j). Clamping at 0 before exp keeps j > i finite.
    decay_XCC = (g_XC[:, :, None] - g_XC[:, None, :]).clamp_(-60.0, 0.0).exp_()
    scores_XCC = torch.bmm(q_XCK, k_XCK.transpose(1, 2)).tril_() * decay_XCC

    # Between chunks: what each chunk adds to the state, and the state each chunk starts from.
    since_start_XC1 = g_XC.clamp_min(-60.0).exp()[..., None]
    until_end_XC1 = (g_XC[:, -1:] - g_XC).clamp_min_(-60.0).exp_()[..., None]
    added_XKV = torch.bmm((k_XCK * until_end_XC1).transpose(1, 2), v_XCV)
    if state_BHKV is None:
        state_BHKV = v_XCV.new_zeros(batch, heads, key_width, value_width)
    state_YKV = state_BHKV.to(dtype).reshape(-1, key_width, value_width)
    states = []
    kept_X11 = since_start_XC1[:, -1:]
    for added_YKV, kept_Y11 in zip(added_XKV.chunk(num_chunks), kept_X11.chunk(num_chunks), strict=True):
        states.append(state_YKV)
        state_YKV = torch.addcmul(added_YKV, kept_Y11, state_YKV)

    o_XCV = torch.baddbmm(torch.bmm(scores_XCC, v_XCV), q_XCK * since_start_XC1, torch.cat(states))
    o_BTHV = from_chunks(o_XCV, batch, length, heads)
    return o_BTHV.to(v_BTHV.dtype), state_YKV.reshape(batch, heads, key_width, value_width)


def linear_recurrence_step(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTH: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `chunked_linear_recurrence`, same arguments and results; the state is not written to."""
    heads_per_group = v_BTHV.shape[2] // q_BTGK.shape[2]
    dtype = state_BHKV.dtype
    q_BHK, k_BHK, v_BHV = q_BTGK[:, 0].to(dtype), k_BTGK[:, 0].to(dtype), v_BTHV[:, 0].to(dtype)
    if heads_per_group > 1:
        q_BHK = q_BHK.repeat_interleave(heads_per_group, dim=1)
        k_BHK = k_BHK.repeat_interleave(heads_per_group, dim=1)
    decay_BH11 = log_decay_BTH[:, 0, :, None, None].to(dtype).exp()
    state_BHKV = torch.addcmul(decay_BH11 * state_BHKV, k_BHK[..., :, None], v_BHV[..., None, :])
    o_BHV = ((scale * q_BHK)[..., None, :] @ state_BHKV)[..., 0, :]
    return o_BHV[:, None].to(v_BTHV.dtype), state_BHKV
