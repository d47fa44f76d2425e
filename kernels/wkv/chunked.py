"""Weighted key values by chunks: the same token of every chunk at once, then what passes between chunks, then the reads.

The recurrence of RWKV (Peng et al. 2023, arXiv 2305.13048), with a decay per channel that may change with the token. A
sum of exponentials is kept as numerator, denominator and their largest exponent, so that no key overflows. About
2 sqrt(T) steps run one after the other. The functions use torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, T time, D channels, S numerator, denominator and exponent (3), M chunks, C tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_wkv", "chunked_wkv_past", "wkv_step"]

NOTHING = -1e30


def chunk_tokens(x_BTF: Tensor, size: int) -> Tensor:
    """Cuts time into chunks of `size` tokens, [B, M, C, F], with zeros after the last token."""
    batch, length, width = x_BTF.shape
    chunks = -(-length // size)
    return F.pad(x_BTF, (0, 0, 0, chunks * size - length)).view(batch, chunks, size, width)


def added(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two sums of exponentials, [..., S, D] each; their exponents carry no gradient, since none is needed."""
    top = torch.maximum(first[..., 2, :], second[..., 2, :])
    a, b = torch.exp(first[..., 2, :] - top)[..., None, :], torch.exp(second[..., 2, :] - top)[..., None, :]
    return torch.cat([a * first[..., :2, :] + b * second[..., :2, :], top[..., None, :]], dim=-2)


def written(k: Tensor, v: Tensor) -> Tensor:
    """One token as a sum of exponentials, [..., S, D]; its gradient passes the factor exp(k - k)."""
    top = k.detach()
    weight = torch.exp(k - top)
    return torch.stack([weight * v, weight, top], dim=-2)


def faded(past: Tensor, g: Tensor) -> Tensor:
    """What is left after a decay of exp(g): the exponent moves, and the gradient passes the factor exp(g - g)."""
    return torch.cat([past[..., :2, :] * torch.exp(g - g.detach())[..., None, :],
                      (past[..., 2, :] + g.detach())[..., None, :]], dim=-2)


def read(past: Tensor) -> Tensor:
    return past[..., 0, :] / past[..., 1, :]


def chunked_wkv_past(k_BTD: Tensor, v_BTD: Tensor, *, log_decay_BTD: Tensor,
                     state_BSD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """past_{t+1} = exp(g_t) past_t + exp(k_t) (v_t, 1): what each token finds, [B, T, S, D], and what the last leaves.

    The arithmetic is float32 (float64 for float64 values). log_decay_BTD: g; batch and time may be 1.
    """
    batch, length, width = k_BTD.shape
    dtype = torch.promote_types(k_BTD.dtype, torch.float32)
    size = math.ceil(math.sqrt(length))
    chunks = -(-length // size)
    # Tokens after the last one write nothing.
    k_BTD = F.pad(k_BTD.to(dtype), (0, 0, 0, chunks * size - length), value=NOTHING)
    k, v = chunk_tokens(k_BTD, size).unbind(2), chunk_tokens(v_BTD.to(dtype), size).unbind(2)
    g = chunk_tokens(log_decay_BTD.to(dtype).expand(batch, length, width), size).unbind(2)

    empty_BSD = nothing(batch, width, k_BTD)
    left_BMSD = empty_BSD[:, None].expand(-1, chunks, -1, -1)
    for k_BMD, v_BMD, g_BMD in zip(k, v, g, strict=True):
        left_BMSD = added(faded(left_BMSD, g_BMD), written(k_BMD, v_BMD))
    state_BSD = empty_BSD if state_BSD is None else state_BSD.to(dtype)
    starts = []
    for left_BSD, g_BD in zip(left_BMSD.unbind(1), torch.stack(g).sum(0).unbind(1), strict=True):
        starts.append(state_BSD)
        state_BSD = added(faded(state_BSD, g_BD), left_BSD)

    past_BMSD, found = torch.stack(starts, dim=1), []
    for k_BMD, v_BMD, g_BMD in zip(k, v, g, strict=True):
        found.append(past_BMSD)
        past_BMSD = added(faded(past_BMSD, g_BMD), written(k_BMD, v_BMD))
    return torch.stack(found, dim=2).flatten(1, 2)[:, :length], state_BSD


def nothing(batch: int, width: int, like: Tensor) -> Tensor:
    """The sum of no exponentials, [B, S, D]."""
    return like.new_tensor([0.0, 0.0, NOTHING])[:, None].expand(batch, 3, width)


def chunked_wkv(k_BTD: Tensor, v_BTD: Tensor, *, log_decay_BTD: Tensor, bonus_D: Tensor,
                state_BSD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(past + exp(k_t + bonus) v_t) / (their weights) with the past of `chunked_wkv_past`, for any T >= 1.

    Returns:
        The outputs [B, T, D] in the dtype of v, and the past after the last token in float32 (or float64).
    """
    past_BTSD, state_BSD = chunked_wkv_past(k_BTD, v_BTD, log_decay_BTD=log_decay_BTD, state_BSD=state_BSD)
    own_BTSD = written(k_BTD.to(past_BTSD.dtype) + bonus_D, v_BTD.to(past_BTSD.dtype))
    return read(added(past_BTSD, own_BTSD)).to(v_BTD.dtype), state_BSD


def wkv_step(k_BTD: Tensor, v_BTD: Tensor, *, log_decay_BTD: Tensor, bonus_D: Tensor,
             state_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `chunked_wkv`, same arguments and results; the state is not written to."""
    dtype = state_BSD.dtype
    k_BD, v_BD, g_BD = (part[:, 0].to(dtype) for part in (k_BTD, v_BTD, log_decay_BTD))
    y_BD = read(added(state_BSD, written(k_BD + bonus_D, v_BD)))
    return y_BD[:, None].to(v_BTD.dtype), added(faded(state_BSD, g_BD.expand_as(k_BD)), written(k_BD, v_BD))
