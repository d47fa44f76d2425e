"""Norms that became a scale and a shift per channel, such a norm inside the linear map after it, and spectral norms put into
the matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..operators.prepbn import Affine, ChannelAffine, PRepBN
from ..operators.spectral import Spectral, spectral_norm
from .comparing import architecture_of, compared, each_block, in_double, with_weights

if TYPE_CHECKING:
    from ..model import SequenceModel

__all__ = ["folded", "folded_into"]

OWN = ("layer_weight", "layer_bias", "eta", "running_mean", "running_var", "trained")


def folded(model: SequenceModel) -> SequenceModel:
    """The network with an `Affine` in the place of every `PRepBN` whose annealing is over, and the operator itself, with the
    matrices it computed with, in the place of every `Spectral` one.

    What such a norm computes in evaluation mode is linear: gain = weight / sqrt(var + eps) + eta, shift = bias - mean *
    weight / sqrt(var + eps).

    Raises:
        ValueError: a module that was not built from an architecture, or a norm that still has a share of layer norm in it.
    """
    architecture = architecture_of(model)
    plan, weights = architecture.plan, in_double(model)
    for name, operator in architecture.modules:
        if isinstance(operator, PRepBN):
            _fold(weights, name, operator)
        elif isinstance(operator, Spectral):
            _fold_spectral(weights, name, operator)
    body = each_block(plan, lambda block: {name: _plain(getattr(block, name)) for name in ("norm", "mixer", "channel")})
    made = with_weights(plan, {"body": body, "norm": _plain(plan.norm)}, weights, model)
    return compared(model, made, weights, "a norm of batch statistics is a scale and a shift, that of a matrix a number")


def _plain(operator: Any) -> Any:
    return Affine() if isinstance(operator, PRepBN) else operator.op if isinstance(operator, Spectral) else operator


def _fold_spectral(weights: dict[str, Tensor], name: str, operator: Spectral) -> None:
    gamma = weights.pop(f"{name}.gamma")
    inner = [key for key in weights if key.startswith(f"{name}.op.")]
    matrices = [key for key in inner if weights[key].ndim == 2]
    for number, key in zip(gamma, matrices, strict=True):
        weights[key] = number / spectral_norm(weights[key], operator.iterations) * weights[key]
    for key in inner:
        weights[f"{name}.{key[len(name) + 4:]}"] = weights.pop(key)


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
