"""A Pre-LN network as a Pre-RMSNorm network, and as a Pre-CRMSNorm network (Jiang et al., 2023).

A layer norm takes the mean off and divides by a root mean square. Where everything that writes to the residual stream writes
vectors of mean zero, there is no mean to take off; since a layer norm does not see the mean, the writers may be recentred
without a change of the function. A stream of mean zero has one entry too many, minus the sum of the others, so it may be
kept without it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..axes import Dim
from ..operators.add import Add
from ..operators.attention import Attention
from ..operators.crms_norm import CRMSNorm
from ..operators.embedding import TokenEmbedding
from ..operators.head import LanguageHead
from ..operators.layernorm import LayerNorm
from ..operators.mlp import MLP, hidden_size
from ..operators.swiglu import SwiGLU
from ..tree import axes_of
from .comparing import architecture_of, compared, each_block, in_double, with_weights

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["compressed", "recentred"]

WRITERS = ("out.weight", "down.weight", "project.weight")          # operators' matrices that write to the stream


def recentred(model: SequenceModel) -> SequenceModel:
    """The trained network with every layer norm as an RMS norm, `LayerNorm(project=False)`, and the same outputs.

    The embedding and every matrix that writes to the stream lose the mean over their outputs. A head tied to the embedding
    becomes one of its own.

    Raises:
        ValueError: a body that is not of plain blocks with layer norms, or an operator that writes to the stream in another
            way, so that outputs would move.
    """
    architecture = architecture_of(model)
    plan: Any = architecture.plan
    norm = _layer_norm(architecture)
    weights = _centred(architecture, in_double(model))
    parts = {"body": each_block(plan, lambda _: {"norm": replace(norm, project=False)}),
             "norm": replace(plan.norm, project=False), "head": _untied(architecture, weights, model)}
    made = with_weights(plan, parts, weights, model)
    return compared(model, made, weights, "a stream of mean zero needs no mean taken off")


def compressed(model: SequenceModel) -> SequenceModel:
    """The trained network with a stream one entry narrower and `CRMSNorm` in place of every layer norm.

    For bodies of `Attention`, `MLP` and `SwiGLU`, of text or images, with layer norms without a shift: in the paper shifts
    go into the biases of the matrices that read, which matrices here do not have. Matrices that write lose their last row
    after recentring, those that read take the gain in and their last column off the others.

    Raises:
        ValueError: another body, or a layer norm with a bias.
    """
    architecture = architecture_of(model)
    plan: Any = architecture.plan
    norm = _layer_norm(architecture)
    if norm.bias or plan.norm.bias:
        raise ValueError("a shift does not fit into a stream one entry narrower: got layer norms with a bias; use "
                         "LayerNorm(bias=False), or recentred(model)")
    weights = _centred(architecture, in_double(model))
    head = _untied(architecture, weights, model)
    gains = {name.rpartition(".")[0]: weights[f"{name}.weight"] for name, op in architecture.modules
             if isinstance(op, LayerNorm)}
    for name, op in architecture.modules:
        if isinstance(op, LayerNorm):
            weights[f"{name}.weight"] = torch.ones(plan.width - 1, dtype=torch.float64)
        elif name != "embed":
            _narrow(weights, name, op, plan.width, gains.get(name.rpartition(".")[0], gains[""]))
    _narrow_embedding(weights, plan.embed, plan.width)
    narrow = {"mixer": _as_narrow, "channel": _as_narrow}
    parts = {"width": plan.width - 1, "head": head, "norm": CRMSNorm(plan.norm.eps), "body": each_block(plan, lambda block: {
        "norm": CRMSNorm(block.norm.eps), **{name: make(getattr(block, name), plan.width) for name, make in narrow.items()}})}
    made = with_weights(plan, parts, weights, model)
    return compared(model, made, weights, "a stream of mean zero is known without one entry")


def _layer_norm(architecture: Architecture) -> LayerNorm:
    """The norm of the blocks. Raises ValueError unless all norms are whole layer norms before their sublayer."""
    plan: Any = architecture.plan
    for where, norm in [("norm", plan.norm), *((f"layers[{i}].norm", b.norm) for i, b in enumerate(plan.layers))]:
        if not isinstance(norm, LayerNorm) or not norm.project or not norm.scale:
            raise ValueError(f"a Pre-LN network has layer norms everywhere at {where}: got {norm!r}")
    for i, block in enumerate(plan.layers):
        if block.placement != "pre" or not isinstance(block.join, Add):
            raise ValueError(f"a Pre-LN network adds what a sublayer gives to the stream at layers[{i}]: got placement="
                             f"{block.placement!r} and {block.join!r}")
    if plan.recursion.lora_rank:
        raise ValueError("corrections per iteration write to the stream as well: got lora_rank; use Loop(times) without")
    return plan.layers[0].norm if plan.layers else plan.norm                          # type: ignore[no-any-return]


def _centred(architecture: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the mean over their outputs taken off everything that writes to the stream."""
    found = dict(weights)
    found["head.untied"] = weights["embed.weight"] if "embed.weight" in weights else torch.empty(0)
    for name, op in architecture.modules:
        for key, declared in axes_of(op, architecture.plan.width).items():
            streams = [d for d, dim in enumerate(declared.dims) if _is_stream(dim)]
            writes = key in WRITERS or key in ("out.bias", "down.bias", "project.bias")
            if name == "embed" and streams or name.endswith(".op") and writes and streams[:1] == [0]:
                tensor = found[f"{name}.{key}"]
                found[f"{name}.{key}"] = tensor - tensor.mean(streams[0], keepdim=True)
    return found


def _untied(architecture: Architecture, weights: dict[str, Tensor], model: Any) -> Any:
    """A head with a matrix of its own, which keeps the embedding as it was."""
    head, table = architecture.plan.head, weights.pop("head.untied")
    if not getattr(head, "tied", False):
        return head
    weights["head.weight"] = table
    return LanguageHead(tied=False, vocab=len(table))


def _narrow_embedding(weights: dict[str, Tensor], embed: Any, width: int) -> None:
    """Whatever enters the stream without its last entry; rows of a table, which enter times sqrt(width), made up for that."""
    factor = math.sqrt(width / (width - 1)) if isinstance(embed, TokenEmbedding) else 1.0
    for key, declared in axes_of(embed, width).items():
        for d, dim in enumerate(declared.dims):
            if _is_stream(dim):
                weights[f"embed.{key}"] = factor * weights[f"embed.{key}"].narrow(d, 0, width - 1)


def _narrow(weights: dict[str, Tensor], name: str, op: Any, width: int, gain: Tensor) -> None:
    """An operator's matrices for a stream without its last entry."""
    if isinstance(op, LanguageHead):
        weights[f"{name}.weight"] = _reader(weights[f"{name}.weight"], gain)
        return
    for key, declared in axes_of(op, width).items():
        if not declared.is_matrix:
            continue
        tensor, (writes, reads) = weights[f"{name}.{key}"], map(_is_stream, declared.dims)
        weights[f"{name}.{key}"] = _reader(tensor, gain) if reads else tensor[:-1] if writes else tensor


def _reader(matrix: Tensor, gain: Tensor) -> Tensor:
    scaled = matrix * gain
    return scaled[:, :-1] - scaled[:, -1:]


def _as_narrow(op: Any, width: int) -> Any:
    """An operator with the inner sizes it has at `width`, for a stream one entry narrower."""
    if isinstance(op, Attention):
        return replace(op, head_dim=op.sizes(width)[2])
    if isinstance(op, MLP | SwiGLU):
        return replace(op, ratio=hidden_size(op.ratio, width) / (width - 1))
    if op.kind == "identity":
        return op
    raise ValueError(f"a stream one entry narrower needs operators whose inner sizes are given: got {op!r}; use Attention, "
                     "MLP or SwiGLU")


def _is_stream(dim: Dim) -> bool:
    return [axis.name for axis in dim.axes()] == ["width"]
