"""Selective scan by chunks: the same token of every chunk at once, then the states between chunks, then the outputs.

The recurrence of Mamba (Gu and Dao 2023, arXiv 2312.00752). Every channel and state fades at its own rate, so a chunk
is no matrix product as it is in Mamba-2. About 2 sqrt(T) steps run one after the other instead of T. The functions use
torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, T time, D channels, N states of a channel, M chunks, C tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["chunked_selective_scan", "selective_scan_step"]


def chunk_tokens(x_BTF: Tensor, size: int) -> Tensor:
    """Cuts time into chunks of `size` tokens, [B, M, C, F], with zeros after the last token."""
    batch, length, width = x_BTF.shape
    chunks = -(-length // size)
    return F.pad(x_BTF, (0, 0, 0, chunks * size - length)).view(batch, chunks, size, width)


def chunked_selective_scan(x_BTD: Tensor, *, dt_BTD: Tensor, A_DN: Tensor, b_BTN: Tensor, c_BTN: Tensor,
                           state_BDN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t b_t x_t, per channel and state; y_t = sum over N of c_t h_t, for any T >= 1.

    The chunks are walked twice, first from zeros for the state each one leaves, then from the state it starts with for
    its outputs: twice the arithmetic, but nothing is divided by a decay, so that no step is too long. The arithmetic is
    float32 (float64 for float64 values), whatever the inputs. Without gradients the states kept are those between
    chunks; with them, those of every token: T * D * N numbers, linear in T.

    Args:
        dt_BTD: steps, at least 0. A_DN: rates, below 0.
        state_BDN: the state before the first token; None stands for zeros.

    Returns:
        The outputs y_BTD in the dtype of x, and the state after the last token in float32 (or float64).
    """
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    length = x_BTD.shape[1]
    size = math.ceil(math.sqrt(length))
    dt_BTD, A_DN = dt_BTD.to(dtype), A_DN.to(dtype)
    dt = chunk_tokens(dt_BTD, size).unbind(2)
    written = chunk_tokens(dt_BTD * x_BTD.to(dtype), size).unbind(2)
    b, c = chunk_tokens(b_BTN.to(dtype), size).unbind(2), chunk_tokens(c_BTN.to(dtype), size).unbind(2)

    left_BMDN = torch.zeros_like(dt[0][..., None] * A_DN)
    for dt_BMD, written_BMD, b_BMN in zip(dt, written, b, strict=True):
        left_BMDN = fade_and_write(left_BMDN, dt_BMD, A_DN, written_BMD, b_BMN)
    state_BDN = torch.zeros_like(left_BMDN[:, 0]) if state_BDN is None else state_BDN.to(dtype)
    kept_BMDN = torch.exp(chunk_tokens(dt_BTD, size).sum(2)[..., None] * A_DN)
    starts = []
    for left_BDN, kept_BDN in zip(left_BMDN.unbind(1), kept_BMDN.unbind(1), strict=True):
        starts.append(state_BDN)
        state_BDN = torch.addcmul(left_BDN, kept_BDN, state_BDN)

    h_BMDN, outputs = torch.stack(starts, dim=1), []
    for dt_BMD, written_BMD, b_BMN, c_BMN in zip(dt, written, b, c, strict=True):
        h_BMDN = fade_and_write(h_BMDN, dt_BMD, A_DN, written_BMD, b_BMN)
        outputs.append((h_BMDN * c_BMN[:, :, None]).sum(-1))
    y_BTD = torch.stack(outputs, dim=2).flatten(1, 2)[:, :length]
    return y_BTD.to(x_BTD.dtype), state_BDN


def fade_and_write(h_BMDN: Tensor, dt_BMD: Tensor, A_DN: Tensor, written_BMD: Tensor, b_BMN: Tensor) -> Tensor:
    """One token of every chunk."""
    return torch.addcmul(written_BMD[..., None] * b_BMN[:, :, None], torch.exp(dt_BMD[..., None] * A_DN), h_BMDN)


def selective_scan_step(x_BTD: Tensor, *, dt_BTD: Tensor, A_DN: Tensor, b_BTN: Tensor, c_BTN: Tensor,
                        state_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """One token (T = 1) of `chunked_selective_scan`, same arguments and results; the state is not written to."""
    dtype = state_BDN.dtype
    dt_BD, x_BD, b_BN, c_BN = (part[:, 0].to(dtype) for part in (dt_BTD, x_BTD, b_BTN, c_BTN))
    keep_BDN = torch.exp(dt_BD[..., None] * A_DN.to(dtype))
    state_BDN = torch.addcmul((dt_BD * x_BD)[..., None] * b_BN[:, None], keep_BDN, state_BDN)
    y_BD = (state_BDN * c_BN[:, None]).sum(-1)
    return y_BD[:, None].to(x_BTD.dtype), state_BDN
