"""Networks trained while they read, a chunk at a time: all gradients at the state the chunk starts with.

The parallel form of Titans (Behrouz et al. 2025, arXiv 2501.00663), which holds for the windows of Atlas (Behrouz et al.
2025, arXiv 2505.23735) as well. A layer's gradient at a token is an outer product, so that what a token reads is a sum over
the chunk's tokens and no token's own weights are ever made, but for Muon, whose iteration needs them. The functions use
torch alone, so that an exported model can carry their source.

Shape suffixes: B batch, H heads, C tokens of the chunk, N these and the window before them, K key width, V value width, I
and O inputs and outputs of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["memory_chunk", "newton_schulz"]


def newton_schulz(x_IO: Tensor, steps: int = 5) -> Tensor:
    """Nearly the orthogonal matrix closest to x, by Muon's quintic iteration from x over its norm."""
    is_tall = x_IO.shape[-2] > x_IO.shape[-1]
    x_IO = x_IO.mT if is_tall else x_IO
    x_IO = x_IO * torch.rsqrt(x_IO.square().sum((-2, -1), keepdim=True) + 1e-12)
    for _ in range(steps):
        gram_II = x_IO @ x_IO.mT
        x_IO = 3.4445 * x_IO + (2.0315 * (gram_II @ gram_II) - 4.775 * gram_II) @ x_IO
    return x_IO.mT if is_tall else x_IO


def memory_gradients(layers: list[Tensor], k_BHNK: Tensor, v_BHNV: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For every layer its inputs and the errors at its outputs: their outer products are the gradients of half the
    squared error of a perceptron with SiLU between its layers."""
    inputs, sums = [k_BHNK], list[Tensor]()
    for number, layer_BHIO in enumerate(layers):
        if number:
            inputs.append(F.silu(sums[-1]))
        sums.append(inputs[-1] @ layer_BHIO)
    errors = [sums[-1] - v_BHNV]
    for number in range(len(layers) - 1, 0, -1):
        gate = torch.sigmoid(sums[number - 1])
        slope = gate * (1 + sums[number - 1] * (1 - gate))
        errors.insert(0, (errors[0] @ layers[number].mT) * slope)
    return inputs, errors


def products_since(log_BHC: Tensor) -> Tensor:
    """[B, H, C, C]: entry t, s is the product of the factors s + 1 to t, zero where s is later than t."""
    total_BHC = log_BHC.cumsum(-1)
    later_CC = torch.ones(log_BHC.shape[-1], log_BHC.shape[-1], dtype=torch.bool, device=log_BHC.device).triu(1)
    return (total_BHC[..., None] - total_BHC[..., None, :]).masked_fill(later_CC, -torch.inf).exp()


def memory_chunk(q_BHCK: Tensor, k_BHNK: Tensor, v_BHNV: Tensor, *, layers: list[Tensor], surprise: list[Tensor],
                 log_keep_BHC: Tensor, step_BHC: Tensor, log_momentum_BHC: Tensor | None, weight_BHN: Tensor, window: int,
                 muon: bool, is_complete: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What the tokens of one chunk read, and the memory and its momentum after the chunk.

    S_t = eta_t S_{t-1} - theta_t grad_t, M_t = keep_t M_{t-1} + S_t and y_t = M_t(q_t); with `muon` theta_t scales
    Newton-Schulz of S_t instead. grad_t sums the gradients of the last `window` tokens, which `weight_BHN` weighs.

    Args:
        layers, surprise: M and S before the chunk, [B, H, I, O] each; surprise is empty without momentum.
        is_complete: whether the chunk is full; otherwise the memory stays what it was.
    """
    size, tokens = q_BHCK.shape[2], k_BHNK.shape[2]
    kept_BHCC, kept_BHC1 = products_since(log_keep_BHC), log_keep_BHC.cumsum(-1).exp()[..., None]
    ahead_CN = torch.arange(tokens, device=q_BHCK.device) - torch.arange(size, device=q_BHCK.device)[:, None]
    ahead_CN = ahead_CN - (tokens - size)
    coefficient_BHCN = weight_BHN[:, :, None] * ((ahead_CN <= 0) & (ahead_CN > -window)).to(q_BHCK.dtype)
    if not muon:
        coefficient_BHCN = coefficient_BHCN * step_BHC[..., None]
    left_BHC1 = None
    if log_momentum_BHC is not None:
        coefficient_BHCN = products_since(log_momentum_BHC) @ coefficient_BHCN
        left_BHC1 = log_momentum_BHC.cumsum(-1).exp()[..., None]
    inputs, errors = memory_gradients(layers, k_BHNK, v_BHNV)
    if muon:
        return orthogonal_chunk(q_BHCK, inputs, errors, layers, surprise, coefficient_BHCN, left_BHC1,
                                kept_BHCC, kept_BHC1, step_BHC, is_complete)
    written_BHCN = kept_BHCC @ coefficient_BHCN
    pushed_BHC1 = None if left_BHC1 is None else kept_BHCC @ left_BHC1
    x_BHCI, after, moved = q_BHCK, [], []
    for number, (layer_BHIO, input_BHNI, error_BHNO) in enumerate(zip(layers, inputs, errors, strict=True)):
        x_BHCI = F.silu(x_BHCI) if number else x_BHCI
        y_BHCO = kept_BHC1 * (x_BHCI @ layer_BHIO) - (x_BHCI @ input_BHNI.mT * written_BHCN) @ error_BHNO
        if pushed_BHC1 is not None:
            y_BHCO = y_BHCO + pushed_BHC1 * (x_BHCI @ surprise[number])
        if is_complete:
            layer_BHIO = kept_BHC1[:, :, -1:] * layer_BHIO - (input_BHNI * written_BHCN[:, :, -1, :, None]).mT @ error_BHNO
        if is_complete and pushed_BHC1 is not None and left_BHC1 is not None:
            layer_BHIO = layer_BHIO + pushed_BHC1[:, :, -1:] * surprise[number]
            added_BHIO = (input_BHNI * coefficient_BHCN[:, :, -1, :, None]).mT @ error_BHNO
            moved.append(left_BHC1[:, :, -1:] * surprise[number] - added_BHIO)
        after.append(layer_BHIO)
        x_BHCI = y_BHCO
    return x_BHCI, after, moved if is_complete else surprise


def orthogonal_chunk(q_BHCK: Tensor, inputs: list[Tensor], errors: list[Tensor], layers: list[Tensor],
                     surprise: list[Tensor], coefficient_BHCN: Tensor, left_BHC1: Tensor | None, kept_BHCC: Tensor,
                     kept_BHC1: Tensor, step_BHC: Tensor, is_complete: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The rest of `memory_chunk` with Muon, where every token has weights of its own."""
    x_BHC1I, after, moved = q_BHCK[..., None, :], [], []
    for number, (layer_BHIO, input_BHNI, error_BHNO) in enumerate(zip(layers, inputs, errors, strict=True)):
        weighed_BHCIN = coefficient_BHCN[..., None, :] * input_BHNI.mT[:, :, None]
        momentum_BHCIO = -(weighed_BHCIN @ error_BHNO[:, :, None])
        if left_BHC1 is not None:
            momentum_BHCIO = momentum_BHCIO + left_BHC1[..., None] * surprise[number][:, :, None]
            moved.append(momentum_BHCIO[:, :, -1])
        steps_BHCIO = step_BHC[..., None, None] * newton_schulz(momentum_BHCIO)
        memory_BHCIO = (kept_BHCC @ steps_BHCIO.flatten(3)).view_as(steps_BHCIO)
        memory_BHCIO = memory_BHCIO + kept_BHC1[..., None] * layer_BHIO[:, :, None]
        x_BHC1I = (F.silu(x_BHC1I) if number else x_BHC1I) @ memory_BHCIO
        after.append(memory_BHCIO[:, :, -1])
    return x_BHC1I[..., 0, :], after if is_complete else layers, moved if is_complete else surprise
