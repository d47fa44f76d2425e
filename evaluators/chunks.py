"""What trains the adapters of attention to chunks.

Legend: B batch, T tokens, D width, H heads, P head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..space.operators.chunk_attention import ChunkTokens, end_of_chunk

__all__ = ["chunk_loss"]


def chunk_loss(model: nn.Module, inputs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, the distillation of attention per chunk, and the loss of the ends of chunks (Ouyang et al., 2025), each a
    mean over the model's `ChunkAttention` layers, from one pass.

    ends: [B, T], whether a token is the last of its chunk, such as the stop of a sentence. Distillation: in nats, how far the
    scores of the adapters are from what the layer's heads, on average, attend to each of the chunks so far, at the last
    tokens of chunks. The loss of ends is the binary cross-entropy. Only adapters get a gradient from the two; they alone are
    trained by

        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in (".ask.", ".offer.", ".ends.")))
    """
    layers = [module for module in model.modules() if isinstance(module, ChunkTokens)]
    if not layers:
        raise ValueError(f"this is about ChunkAttention in a model: got none in {type(model).__name__}; put one into "
                         "the body")
    found: list[tuple[Tensor, Tensor]] = []

    def compare(module: Any, given: tuple[Tensor, ...]) -> None:
        x_BTD = given[0].detach()
        missed = F.binary_cross_entropy_with_logits(module.ends(x_BTD)[..., 0], ends.to(x_BTD.dtype))
        found.append((_distillation(module, x_BTD, ends), missed))

    hooks = [layer.register_forward_pre_hook(compare) for layer in layers]
    try:
        logits = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    apart, missed = zip(*found, strict=True)
    return logits, torch.stack(apart).mean(), torch.stack(missed).mean()


def _distillation(layer: ChunkTokens, x_BTD: Tensor, ends_BT: Tensor) -> Tensor:
    """Mean divergence at the last tokens of chunks; 0 where there are none."""
    with torch.no_grad():
        q, k, _, _ = layer.extended(x_BTD, None)
        later_TT = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=x_BTD.device).triu(1)
        weight_BTT = (q @ k.mT / math.sqrt(layer.head_dim)).masked_fill(later_TT, -torch.inf).softmax(-1).mean(1)
        last_BTT = end_of_chunk(ends_BT)[:, None].expand_as(weight_BTT)
        share_BTT = torch.zeros_like(F.pad(weight_BTT, (0, 1))).scatter_add(2, last_BTT, weight_BTT)[..., :-1]
        known_BTT = ends_BT[:, None] & ~later_TT
        share_BTT = share_BTT * known_BTT
        share_BTT = share_BTT / share_BTT.sum(-1, keepdim=True).clamp_min(1e-12)
    score_BTT = layer.chunk_scores(layer.ask(x_BTD), layer.offer(x_BTD), ends_BT)
    guess_BTT = score_BTT.masked_fill(~known_BTT, torch.finfo(score_BTT.dtype).min).log_softmax(-1)
    apart_BT = torch.where(known_BTT, torch.xlogy(share_BTT, share_BTT) - share_BTT * guess_BTT, 0).sum(-1)
    return (apart_BT * ends_BT).sum() / ends_BT.sum().clamp_min(1)
