"""Norms that became a scale and a shift per channel, batch norms inside the weights before them, such a norm inside the
linear map after it, spectral norms put into the matrices, and convolutions side by side made one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..operators.batchnorm import BatchNorm, BatchNormalisation
from ..operators.branched import LAST, Branched
from ..operators.multi_group_conv import MultiGroupConv
from ..operators.prepbn import Affine, ChannelAffine, PRepBN
from ..operators.spectral import Spectral, spectral_norm
from .comparing import compared, declared_by, in_double, rewritten, with_weights

if TYPE_CHECKING:
    from ..model import SequenceModel

__all__ = ["folded", "folded_into"]

OWN = ("layer_weight", "layer_bias", "eta", "running_mean", "running_var", "trained")


def folded(model: SequenceModel) -> SequenceModel:
    """The network as it is exported best: norms that batches gave their numbers are scales and shifts, or gone.

    An `Affine` stands in the place of every `PRepBN` whose annealing is over and of every `BatchNorm`; batch norms inside
    operators that have a field `folded` are in the weights before them, all but their shift (structural
    re-parameterisation); the operator itself, with the matrices it computed with, stands in the place of every `Spectral`
    one, and of every `Branched` one whose branches are joined; one convolution stands for the branches of a
    `MultiGroupConv`. Batch norms inside other operators, and inside macros, stay.

    What such a norm computes in evaluation mode is linear: gain = weight / sqrt(var + eps) + eta, eta being 0 in a batch
    norm, shift = bias - mean * weight / sqrt(var + eps).

    Raises:
        ValueError: a module that was not built from an architecture, a norm that still has a share of layer norm in it,
            branches that are not joined yet, or loops with low-rank corrections of the matrices that norms would go into.
    """
    architecture = declared_by(model)
    plan, weights = architecture.plan, in_double(model)
    for name, operator in architecture.modules:
        if isinstance(operator, PRepBN):
            _fold(weights, name, operator)
        elif isinstance(operator, BatchNorm):
            _fold_batch_norm(weights, name, operator.eps)
        elif _is_foldable(operator):
            width = next(place.width for place in architecture.placed if place.name == name)
            for norm, weight in operator.folds(width).items():                             # type: ignore[attr-defined]
                _fold_into_weight(weights, f"{name}.{norm}", f"{name}.{weight}")
        elif isinstance(operator, Spectral):
            _fold_spectral(weights, name, operator)
        elif isinstance(operator, Branched):
            _fold_branches(weights, name, operator)
        elif isinstance(operator, MultiGroupConv) and not operator.folded:
            _fold_groups(weights, name, operator)
    body = rewritten(plan.layers, _plain)
    _check_loops(architecture)
    made = with_weights(plan, {"embed": _plain(plan.embed), "body": body, "norm": _plain(plan.norm)}, weights, model)
    return compared(model, made, weights, "a norm of batch statistics is a scale and a shift, that of a matrix a number")


def _plain(operator: Any) -> Any:
    if isinstance(operator, PRepBN | BatchNorm):
        return Affine()
    if isinstance(operator, Spectral | Branched):
        return operator.op
    return replace(operator, folded=True) if isinstance(operator, MultiGroupConv) or _is_foldable(operator) else operator


def _is_foldable(operator: Any) -> bool:
    """Whether batch norms inside an operator may go into the weights before them, and have not."""
    return hasattr(operator, "folds") and not operator.folded and bool(operator.folds(8))


def _check_loops(architecture: Any) -> None:
    """Raise ValueError where loops correct the matrices that norms would go into."""
    loops = [architecture.plan.recursion, *(getattr(op, "recursion", None) for _, op in architecture.modules)]
    if any(getattr(loop, "lora_rank", 0) for loop in loops) and any(_is_foldable(op) for _, op in architecture.modules):
        raise ValueError("corrections per iteration belong to the matrices without their norms: got lora_rank; use "
                         "Loop(times) without")


def _fold_batch_norm(weights: dict[str, Tensor], name: str, eps: float) -> None:
    weight, bias, mean, var = (weights.pop(f"{name}.{key}") for key in ("weight", "bias", "running_mean", "running_var"))
    scale = weight * torch.rsqrt(var + eps)
    weights |= {f"{name}.weight": scale, f"{name}.bias": bias - mean * scale}


def _fold_into_weight(weights: dict[str, Tensor], norm: str, weight: str) -> None:
    """The scale of a batch norm into the outputs of the weight before it."""
    _fold_batch_norm(weights, norm, BatchNormalisation(1).eps)
    scale = weights.pop(f"{norm}.weight")
    weights[weight] = weights[weight] * scale.view(-1, *[1] * (weights[weight].ndim - 1))


def _fold_spectral(weights: dict[str, Tensor], name: str, operator: Spectral) -> None:
    gamma = weights.pop(f"{name}.gamma")
    inner = [key for key in weights if key.startswith(f"{name}.op.")]
    matrices = [key for key in inner if weights[key].ndim == 2]
    for number, key in zip(gamma, matrices, strict=True):
        weights[key] = number / spectral_norm(weights[key], operator.iterations) * weights[key]
    for key in inner:
        weights[f"{name}.{key[len(name) + 4:]}"] = weights.pop(key)


def _fold_branches(weights: dict[str, Tensor], name: str, operator: Branched) -> None:
    """One operator of the means over the branches and of the sums of their last matrices."""
    trained = weights.pop(f"{name}.trained").item()
    if trained < operator.warmup + operator.steps:
        raise ValueError(f"branches are folded when they are joined at {name}: got {trained:.0f} of "
                         f"{operator.warmup + operator.steps} training steps; train on, or give Branched fewer steps")
    for first in [key for key in weights if key.startswith(f"{name}.branches.0.")]:
        key = first.removeprefix(f"{name}.branches.0.")
        each = torch.stack([weights.pop(f"{name}.branches.{i}.{key}") for i in range(operator.branches)])
        weights[f"{name}.{key}"] = each.sum(0) if key.split(".")[0] in LAST else each.mean(0)


def _fold(weights: dict[str, Tensor], name: str, norm: PRepBN) -> None:
    held = {key: weights[f"{name}.{key}"] for key in (*OWN, "weight", "bias")}
    if held["trained"].item() < norm.warmup + norm.steps:
        raise ValueError(f"a norm is folded when its annealing is over at {name}: got {held['trained'].item():.0f} of "
                         f"{norm.warmup + norm.steps} training steps; train on, or give PRepBN fewer steps")
    scale = held["weight"] * torch.rsqrt(held["running_var"] + norm.eps)
    weights[f"{name}.weight"] = scale + held["eta"]
    weights[f"{name}.bias"] = held["bias"] - held["running_mean"] * scale
    for key in OWN:
        del weights[f"{name}.{key}"]


def _fold_groups(weights: dict[str, Tensor], name: str, conv: MultiGroupConv) -> None:
    """The branches as one kernel: each in the middle, at the inputs of its own groups, times the gain of its norm."""
    kernels = [(weights.pop(f"{name}.weights.{i}"), f"{name}.norms.{i}") for i in range(len(conv.branches))]
    width = len(kernels[0][0])
    if conv.identity:
        kernels.append((torch.ones_like(kernels[0][0][:, :1, :1, :1]), f"{name}.norm"))
    channel_D, size = torch.arange(width, device=kernels[0][0].device), width // conv.groups
    total = kernels[0][0].new_zeros(width, size, conv.kernel, conv.kernel)
    bias_D = total.new_zeros(width)
    for kernel, norm in kernels:
        held = {key: weights.pop(f"{norm}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        gain_D = held["weight"] * torch.rsqrt(held["running_var"] + 1e-5)
        bias_D += held["bias"] - held["running_mean"] * gain_D
        count, side = kernel.shape[1:3]
        into_DC = (channel_D // count * count % size)[:, None] + torch.arange(count, device=total.device)
        middle = slice((conv.kernel - side) // 2, (conv.kernel + side) // 2)
        total[channel_D[:, None], into_DC, middle, middle] += gain_D[:, None, None, None] * kernel
    weights[f"{name}.weight"], weights[f"{name}.bias"] = total, bias_D


@torch.no_grad()
def folded_into(norm: nn.Module, linear: nn.Linear) -> nn.Linear:
    """`linear(norm(x))` as one linear map with a bias, for the module of `Affine`.

    Raises TypeError for another norm: what divides by a size of its input is not linear.
    """
    if not isinstance(norm, ChannelAffine):
        raise TypeError(f"only a scale and a shift fold into a linear map: got {type(norm).__name__}; use folded(model) on a "
                        "network of PRepBN norms first")
    weight, shift = linear.weight.double(), norm.bias.double()
    made = nn.Linear(linear.in_features, linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
    made.weight.copy_(weight * norm.weight.double())
    made.bias.copy_(weight @ shift + (0 if linear.bias is None else linear.bias.double()))
    return made
