"""Vector-decay linear recurrence by chunks: matrix products alone, and no exponent above 0.

Gated Linear Attention (Yang et al. 2023, arXiv 2312.06635): every key channel of the state fades at its own rate. The
usual form scales queries by exp(G) and keys by exp(-G), G being the decay since the chunk began, which overflows. Here
a chunk is halved again and again: what the right half reads of the left goes through the middle, so that queries are
scaled by the decay since the middle and keys by the decay until it, both at most 1. The functions use torch alone, so
that an exported model can carry their source.

Shape suffixes: B batch, T time, H heads, N chunks, C tokens of a chunk, X = N * B * H chunks of all heads (chunk
outermost), Y = B * H, P pairs of halves, J tokens of a half, K key width, V value width, D any width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_gated_linear", "gated_linear_step"]


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


def inside_chunks(q_XCK: Tensor, k_XCK: Tensor, v_XCV: Tensor, g_XCK: Tensor) -> Tensor:
    """What the tokens of a chunk, a power of two of them, read of each other and of themselves: [X, C, V]."""
    size, key_width, value_width = q_XCK.shape[1], q_XCK.shape[2], v_XCV.shape[2]
    o_XCV = (q_XCK * k_XCK).sum(-1, keepdim=True) * v_XCV
    half = size // 2
    while half:
        right_PJK = q_XCK.reshape(-1, 2, half, key_width)[:, 1]
        left_PJK = k_XCK.reshape(-1, 2, half, key_width)[:, 0]
        left_PJV = v_XCV.reshape(-1, 2, half, value_width)[:, 0]
        g_P2JK = g_XCK.reshape(-1, 2, half, key_width).cumsum(2)
        since_PJK = g_P2JK[:, 1].clamp_min(-60.0).exp()
        until_PJK = (g_P2JK[:, 0, -1:] - g_P2JK[:, 0]).clamp(-60.0, 0.0).exp()
        scores_PJJ = torch.bmm(right_PJK * since_PJK, (left_PJK * until_PJK).transpose(1, 2))
        read_PJV = torch.bmm(scores_PJJ, left_PJV)
        o_XCV = o_XCV + F.pad(read_PJV, (0, 0, half, 0)).view(o_XCV.shape)
        half //= 2
    return o_XCV


def chunked_gated_linear(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTHK: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t, then o_t = scale * q_t S_t, for any T >= 1.

    The arithmetic is float32 (float64 for float64 values), whatever the inputs. Products of decays are floored at
    exp(-60), below which they would only make denormal, slow numbers. Time and memory are linear in T.

    Args:
        log_decay_BTHK: g, at most 0 and finite.
        state_BHKV: the state before the first token; None stands for zeros.
        chunk: most tokens in one chunk, a power of two; changes speed and memory, not the result.

    Returns:
        The outputs o_BTHV in the dtype of v, and the state after the last token in float32 (or float64).
    """
    batch, length, heads, value_width = v_BTHV.shape
    key_width = k_BTHK.shape[-1]
    size = min(chunk, 1 << (length - 1).bit_length())
    num_chunks = -(-length // size)
    dtype = torch.promote_types(v_BTHV.dtype, torch.float32)

    q_XCK = to_chunks(q_BTHK.to(dtype), num_chunks, size, heads)
    k_XCK = to_chunks(k_BTHK.to(dtype), num_chunks, size, heads)
    v_XCV = to_chunks(v_BTHV.to(dtype), num_chunks, size, heads)
    g_XCK = to_chunks(log_decay_BTHK.to(dtype), num_chunks, size, heads)
    if scale != 1.0:
        q_XCK = q_XCK * scale
    sum_XCK = g_XCK.cumsum(1)

    # Between chunks: what each chunk adds to the state, and the state each chunk starts from.
    since_start_XCK = sum_XCK.clamp_min(-60.0).exp()
    until_end_XCK = (sum_XCK[:, -1:] - sum_XCK).clamp(-60.0, 0.0).exp()
    added_XKV = torch.bmm((k_XCK * until_end_XCK).transpose(1, 2), v_XCV)
    kept_XK1 = since_start_XCK[:, -1, :, None]
    if state_BHKV is None:
        state_BHKV = v_XCV.new_zeros(batch, heads, key_width, value_width)
    state_YKV = state_BHKV.to(dtype).reshape(-1, key_width, value_width)
    states = []
    for added_YKV, kept_YK1 in zip(added_XKV.chunk(num_chunks), kept_XK1.chunk(num_chunks), strict=True):
        states.append(state_YKV)
        state_YKV = torch.addcmul(added_YKV, kept_YK1, state_YKV)

    o_XCV = torch.baddbmm(inside_chunks(q_XCK, k_XCK, v_XCV, g_XCK), q_XCK * since_start_XCK, torch.cat(states))
    o_BTHV = from_chunks(o_XCV, batch, length, heads)
    return o_BTHV.to(v_BTHV.dtype), state_YKV.reshape(batch, heads, key_width, value_width)


def gated_linear_step(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    *,
    log_decay_BTHK: Tensor,
    scale: float = 1.0,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `chunked_gated_linear`, same arguments and results; the state is not written to."""
    dtype = state_BHKV.dtype
    q_BHK, k_BHK, v_BHV = q_BTHK[:, 0].to(dtype), k_BTHK[:, 0].to(dtype), v_BTHV[:, 0].to(dtype)
    decay_BHK1 = log_decay_BTHK[:, 0, :, :, None].to(dtype).exp()
    state_BHKV = torch.addcmul(decay_BHK1 * state_BHKV, k_BHK[..., :, None], v_BHV[..., None, :])
    o_BHV = ((scale * q_BHK)[..., None, :] @ state_BHKV)[..., 0, :]
    return o_BHV[:, None].to(v_BTHV.dtype), state_BHKV
