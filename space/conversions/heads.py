"""Attention of a trained network with fewer key/value heads, with heads that tokens choose, and as a gated recurrence.

Legend: H heads, G key/value heads, P head_dim, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..axes import Dim
from ..equivalents.comparing import compared
from ..operator import Operator, Source
from ..operators.attention import Attention
from ..operators.cross_attention import CrossAttention
from ..operators.liger import Liger
from ..operators.mixture_of_heads import MixtureOfHeads
from ..tree import axes_of
from .converting import Tensors, built_from, exchanged, from_paper

if TYPE_CHECKING:
    from ..model import SequenceModel

__all__ = ["as_liger", "as_mixture", "grouped_heads", "linearised", "moved_to_mixture", "regrouped_heads", "routed_heads"]

PROOF = "tests/space/test_conversions.py -k {}"


@from_paper(Source("GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023),
            PROOF.format("grouped"))
def grouped_heads(model: SequenceModel, kv_heads: int, layers: Collection[int] | None = None) -> SequenceModel:
    """The trained network with `kv_heads` key/value heads in every attention that has more (Ainslie et al., 2023); 1 is
    multi-query attention (Shazeer, 2019).

    A new key/value head is the mean of those of the neighbouring heads it stands for, so outputs stay where these agree
    and move elsewhere: the paper trains on for a twentieth of the original steps. layers: items of the body; all by
    default.

    Raises ValueError when no attention has more heads, or their number is no multiple of `kv_heads`.
    """
    def change(op: Operator) -> Operator | None:
        now = _kv_heads(op)
        if now is None or now <= kv_heads:
            return None
        if kv_heads < 1 or now % kv_heads:
            raise ValueError(f"kv_heads must divide the key/value heads there are: got {kv_heads} and {now}")
        return replace(op, kv_heads=kv_heads)                                      # type: ignore[type-var]

    return exchanged(model, change, regrouped_heads, layers, f"attention with more than {kv_heads} key/value heads")[0]


def _kv_heads(op: Operator) -> int | None:
    """How many there are, of attention whose keys and values are its own."""
    return op.kv_heads or op.heads if isinstance(op, Attention | CrossAttention | Liger) else None


def regrouped_heads(name: str, before: Any, after: Any, width: int, weights: Tensors) -> Tensors:
    """Weights of an attention with other key/value heads, wherever an axis counts these: means over neighbours where there
    are fewer, copies where there are more."""
    declared = axes_of(before, width)
    return {key: _regrouped(weights[key], declared[key].dims, wanted.dims) for key, wanted in axes_of(after, width).items()}


def _regrouped(tensor: Tensor, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Tensor:
    for d, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.size != new.size:
            now, wanted = (next(dim.axes()) for dim in (old, new))
            assert now.name == "kv_heads" and len(old.segments) == 1, f"heads come first: {old}"
            by_head = torch.unflatten(tensor, d, (now.size, -1))
            if wanted.size < now.size:
                by_head = torch.unflatten(by_head, d, (wanted.size, -1)).mean(d + 1)
            else:
                by_head = by_head.repeat_interleave(wanted.size // now.size, d)
            tensor = by_head.flatten(d, d + 1)
    return tensor


@from_paper(Source("MoH: Multi-Head Attention as Mixture-of-Head Attention", 2024, systems=("S379",)),
            PROOF.format("mixture_of_heads"))
def routed_heads(model: SequenceModel, shared_heads: int, top_k: int, inputs: Tensor | None = None,
                 layers: Collection[int] | None = None) -> SequenceModel:
    """The trained network with `MixtureOfHeads` in the place of every attention, to be trained on (Jin et al., 2024).

    Key/value heads that serve several queries become one each. Routers start at zero, so that every gate that is open
    is 1: with `shared_heads + top_k` heads the network computes what it did, which is checked in float64; with fewer, the
    last heads are silent until routers have learned. inputs: a batch on which heads are weighed, those that add the most
    to the stream coming first; without it heads keep their order, as in the paper, whose shared heads are the first.

    Raises ValueError where no attention is plain: with options beyond heads, window, direction and rotary positions.
    """
    def change(op: Operator) -> Operator | None:
        return as_mixture(op, shared_heads, top_k)

    orders = {} if inputs is None else _orders(model, change, inputs)

    def move(name: str, before: Any, after: Any, width: int, weights: Tensors) -> Tensors:
        return moved_to_mixture(before, after, width, weights, orders.get(name))

    made, weights = exchanged(model, change, move, layers, "plain attention, with options that a mixture of heads has")
    mixtures = [op for _, op in made.architecture.modules if isinstance(op, MixtureOfHeads)]      # type: ignore[union-attr]
    if all(op.heads == shared_heads + top_k for op in mixtures):
        return compared(model, made, weights, "a mixture with every head open is plain attention")
    return made


def as_mixture(op: Operator, shared_heads: int, top_k: int) -> MixtureOfHeads | None:
    """The mixture of an attention's heads, None for what is no plain attention."""
    if not isinstance(op, Attention) or op != _plain(op):
        return None
    return MixtureOfHeads(op.heads, shared_heads, top_k, op.head_dim, op.window, op.bidirectional, op.rotary)


def _plain(op: Attention) -> Attention:
    """The attention without any option that a mixture of heads has not."""
    return Attention(op.heads, op.kv_heads, op.head_dim, op.window, bidirectional=op.bidirectional, rotary=op.rotary)


def moved_to_mixture(before: Attention, after: MixtureOfHeads, width: int, weights: Tensors,
                     order: Tensor | None = None) -> Tensors:
    """The weights of the mixture: routers at zero, heads in `order`."""
    _, group, head_dim = before.sizes(width)
    order = torch.arange(before.heads) if order is None else order
    by_head = {key: torch.unflatten(weights[f"{key}.weight"], 0, (-1, head_dim)) for key in ("query", "key", "value")}
    found = {f"{key}.weight": (rows.repeat_interleave(1 if key == "query" else group, 0)[order]).flatten(0, 1)
             for key, rows in by_head.items()}
    found["out.weight"] = torch.unflatten(weights["out.weight"], 1, (-1, head_dim))[:, order].flatten(1)
    like = weights["out.weight"]
    return found | {key: like.new_zeros(declared.shape) for key, declared in axes_of(after, width).items()
                    if key not in found}


@torch.no_grad()
def _orders(model: SequenceModel, change: Any, inputs: Tensor) -> dict[str, Tensor]:
    """Of every attention that will change, its heads by the mean norm of what they add to the stream, largest first."""
    found: dict[str, Tensor] = {}
    named: list[tuple[str, Any]] = built_from(model).modules

    def weigh(name: str, heads: int) -> Any:
        def hook(module: Any, given: tuple[Tensor, ...]) -> None:
            y_BTHP = torch.unflatten(given[0], -1, (heads, -1))
            added_BTHD = torch.einsum("bthp,dhp->bthd", y_BTHP, torch.unflatten(module.weight, 1, (heads, -1)))
            found[name] = added_BTHD.norm(dim=-1).mean((0, 1)).argsort(descending=True, stable=True).cpu()
        return hook

    was_training, hooks = model.training, []
    for name, op in named:
        if change(op) is not None:
            out = model.get_submodule(f"{name}.out")
            hooks.append(out.register_forward_pre_hook(weigh(name, op.heads)))
    try:
        model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return found


@from_paper(Source("Liger: Linearizing Large Language Models to Gated Recurrent Structures", 2025, systems=("S269",)),
            PROOF.format("liger"))
def linearised(model: SequenceModel, window: int = 64, mix: float = 0.5, temperature: float = 16,
               layers: Collection[int] | None = None) -> SequenceModel:
    """The trained network with `Liger` in the place of every causal attention (Lan et al., 2025), and the same parameters.

    mix: the share of the recurrence, 1 - mix that of softmax attention to the last `window` tokens. Outputs move, and a
    short training brings them back; with mix 0 they stay as they are for sequences of up to `window` tokens. layers: items
    of the body; all by default.

    Raises ValueError where no attention is plain and causal, with rotary positions.
    """
    def change(op: Operator) -> Operator | None:
        return as_liger(op, window, mix, temperature)

    return exchanged(model, change, lambda name, before, after, width, weights: weights, layers,
                     "causal attention with rotary positions and no other option")[0]


def as_liger(op: Operator, window: int, mix: float, temperature: float) -> Liger | None:
    """The gated recurrence with an attention's parameters, None for what is no plain causal attention."""
    if not isinstance(op, Attention) or op != Attention(op.heads, op.kv_heads, op.head_dim, op.window, op.rope_base):
        return None
    return Liger(op.heads, op.kv_heads, op.head_dim, window, mix, temperature, op.rope_base)
