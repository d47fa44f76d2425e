"""Attention inside buckets of tokens, in order: every token reads the newest members of its own bucket.

Sorted by bucket and place, the members of a bucket stand side by side, so that what a token reads is a window over the sorted
tokens: linear in their number, and causal, since what comes later only ever stands behind it in its bucket.

Legend: B batch, T tokens, H heads, R rounds (ways to put tokens into buckets), P head_dim, C chunks, N tokens of a
chunk, M tokens of a chunk and the one before (2 N), G heads in every round (H * R), S tokens so far, W members found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gathered import cut, with_previous

__all__ = ["newest_members", "sorted_members", "window_pairs"]

ALONE = -1e5


def in_order(x_BHTE: Tensor, order_BHRT: Tensor) -> Tensor:
    """The tokens in the order of every round, [B, H * R, T, E]."""
    batch, heads, rounds, length = order_BHRT.shape
    x_BHRTE = x_BHTE[:, :, None].expand(batch, heads, rounds, length, x_BHTE.shape[-1])
    index_BHRTE = order_BHRT[..., None].expand(x_BHRTE.shape)
    return x_BHRTE.gather(3, index_BHRTE).flatten(1, 2)


def sorted_members(q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor, bucket_BHRT: Tensor, members: int,
                   shuns_itself: bool) -> Tensor:
    """Every token reads, in all rounds together, the `members` newest of its buckets, itself included.

    A token that several rounds find counts once. shuns_itself: a token reads itself only where it finds no other.
    """
    batch, heads, rounds, length = bucket_BHRT.shape
    place_T = torch.arange(length, device=q_BHTP.device)
    order_BHRT = (bucket_BHRT * length + place_T).argsort(-1)
    rank_BHRT = order_BHRT.argsort(-1)
    q, k, v = (cut(in_order(part, order_BHRT), members) for part in (q_BHTP, k_BHTP, v_BHTP))
    # Label 0 is that of nobody: what fills up the last chunk.
    label_BHTR = (bucket_BHRT + 1).transpose(2, 3)
    is_read_GCNM = own_members((bucket_BHRT + 1).gather(3, order_BHRT).flatten(1, 2), members)
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits_GCNM = (q @ with_previous(k).transpose(3, 4)).to(dtype) * q.shape[-1] ** -0.5
    if rounds > 1:
        labels, ranks = (cut(in_order(part, order_BHRT), members) for part in (label_BHTR, rank_BHRT.transpose(2, 3)))
        logits_GCNM = logits_GCNM - times_found(labels, ranks, members).to(dtype).log()
    if shuns_itself:
        logits_GCNM = logits_GCNM.masked_fill(steps_back(members, q.device) == 0, ALONE)
    logits_GCNM = logits_GCNM.masked_fill(~is_read_GCNM, -torch.inf)
    weights_GCNM = logits_GCNM.softmax(-1)
    y_GCNP = weights_GCNM.to(v.dtype) @ with_previous(v)
    y_BHRTP = y_GCNP.flatten(2, 3)[:, :, :length].unflatten(1, (heads, rounds))
    if rounds == 1:
        only_BHTP: Tensor = y_BHRTP[:, :, 0].gather(2, rank_BHRT[:, :, 0, :, None].expand_as(y_BHRTP[:, :, 0]))
        return only_BHTP
    total_BHRT = logits_GCNM.logsumexp(-1).flatten(2, 3)[:, :, :length].unflatten(1, (heads, rounds)).gather(3, rank_BHRT)
    y_BHRTP = y_BHRTP.gather(3, rank_BHRT[..., None].expand_as(y_BHRTP))
    y_BHTP: Tensor = (total_BHRT.softmax(2)[..., None].to(y_BHRTP.dtype) * y_BHRTP).sum(2)
    return y_BHTP


def steps_back(members: int, device: torch.device) -> Tensor:
    """How far each of the 2 N tokens of a chunk and the one before lies behind each of the chunk, [N, M]."""
    return members + torch.arange(members, device=device)[:, None] - torch.arange(2 * members, device=device)


def own_members(label_GT: Tensor, members: int) -> Tensor:
    """Which of the sorted tokens each of a chunk reads, [B, G, C, N, M]."""
    label_GCN1 = cut(label_GT[..., None], members)
    back_NM = steps_back(members, label_GT.device)
    same_GCNM: Tensor = label_GCN1 == with_previous(label_GCN1).transpose(3, 4)
    return same_GCNM & (back_NM >= 0) & (back_NM < members)


def times_found(label_GCNR: Tensor, rank_GCNR: Tensor, members: int) -> Tensor:
    """In how many rounds each pair is read, at least 1."""
    label_GCMR, rank_GCMR = with_previous(label_GCNR), with_previous(rank_GCNR)
    count_GCNM = torch.zeros((), dtype=torch.int64, device=label_GCNR.device)
    for r in range(label_GCNR.shape[-1]):
        back_GCNM = rank_GCNR[..., :, None, r] - rank_GCMR[..., None, :, r]
        same_GCNM = label_GCNR[..., :, None, r] == label_GCMR[..., None, :, r]
        count_GCNM = count_GCNM + (same_GCNM & (back_GCNM >= 0) & (back_GCNM < members))
    return count_GCNM.clamp_min(1)


def newest_members(q_BH1P: Tensor, k_BHSP: Tensor, v_BHSP: Tensor, bucket_BHRS: Tensor, members: int,
                   shuns_itself: bool) -> Tensor:
    """The same for the newest of S tokens alone, by looking for its buckets: [B, H, 1, P]."""
    seen = bucket_BHRS.shape[-1]
    place_S = torch.arange(seen, device=q_BH1P.device)
    place_BHRS = torch.where(bucket_BHRS == bucket_BHRS[..., -1:], place_S, -1)
    index_BHW = place_BHRS.topk(min(members, seen), dim=-1).values.flatten(2)
    is_read_BHW = index_BHW >= 0
    same_BHWW = (index_BHW[..., :, None] == index_BHW[..., None, :]) & is_read_BHW[..., None, :]
    index_BHWP = index_BHW.clamp_min(0)[..., None].expand(*index_BHW.shape, k_BHSP.shape[-1])
    k_BHWP, v_BHWP = k_BHSP.gather(2, index_BHWP), v_BHSP.gather(2, index_BHWP)
    dtype = torch.promote_types(q_BH1P.dtype, torch.float32)
    logits_BH1W = (q_BH1P @ k_BHWP.transpose(2, 3)).to(dtype) * q_BH1P.shape[-1] ** -0.5
    logits_BH1W = logits_BH1W - same_BHWW.sum(-1).clamp_min(1).to(dtype).log()[:, :, None]
    if shuns_itself:
        logits_BH1W = logits_BH1W.masked_fill((index_BHW == seen - 1)[:, :, None], ALONE)
    weights_BH1W = logits_BH1W.masked_fill(~is_read_BHW[:, :, None], -torch.inf).softmax(-1)
    y_BH1P: Tensor = weights_BH1W.to(v_BHWP.dtype) @ v_BHWP
    return y_BH1P


def window_pairs(length: int, members: int) -> int:
    """Tokens read by the first `length` tokens, each at most `members`."""
    most = min(length, members)
    return most * (most + 1) // 2 + (length - most) * most
