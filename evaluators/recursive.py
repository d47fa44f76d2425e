"""A looped model from a trained one: shared layers from several, the rest of each as a low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..space.architecture import Architecture
    from ..space.model import SequenceModel

__all__ = ["recursive"]

WAYS = ("average", "stepwise", "lower")


@torch.no_grad()
def recursive(model: SequenceModel, architecture: Architecture, init: str = "average") -> SequenceModel:
    """A model of `architecture`, a body of K layers under `Loop(N, lora_rank)`, from a trained one of K N layers.

    Relaxed Recursive Transformers (Bae et al., 2024). Layer k in iteration t stands for layer t K + k of the trained model.
    Its shared weights start as: "average", the mean of the layers it stands for; "stepwise", K layers at even distances
    from the first to the last; "lower", the first K layers. The corrections `B[t] A[t]` start as the truncated singular
    value decomposition of what is missing, the best of their rank; with a full rank the looped model computes what the
    trained one does, where its vectors (norm gains, biases), which have no correction, agree.

    Raises ValueError for an unknown way, or layers of other kinds, sizes or numbers.
    """
    if init not in WAYS:
        raise ValueError(f"init is one of {', '.join(WAYS)}: got {init!r}")
    made, recursion = architecture.build(), architecture.plan.recursion
    deep, count, times = dict(model.named_parameters()), len(made.layers), recursion.times
    if len(model.layers) != count * times or len(model.lora):
        raise ValueError(f"a looped model stands for as many layers as its own times its iterations: got {len(model.layers)} "
                         f"for {count} layers {times} times")
    for name, parameter in made.named_parameters():
        if not name.startswith("lora."):
            parameter.copy_(_shared(name, parameter, deep, count, times, init))
    if recursion.lora_rank:
        _correct(made, deep, count, times)
    return made


def _shared(name: str, like: Tensor, deep: Mapping[str, Tensor], count: int, times: int, init: str) -> Tensor:
    """A parameter outside the corrections."""
    if not name.startswith("layers."):
        return _same(name, like, deep)
    _, index, rest = name.split(".", 2)
    k = int(index)
    if init == "average":
        return torch.stack([_same(f"layers.{t * count + k}.{rest}", like, deep) for t in range(times)]).mean(0)
    last = count * times - 1
    chosen = k if init == "lower" else round(k * last / (count - 1)) if count > 1 else 0
    return _same(f"layers.{chosen}.{rest}", like, deep)


def _same(name: str, like: Tensor, deep: Mapping[str, Tensor]) -> Tensor:
    found = deep.get(name)
    if found is None or found.shape != like.shape:
        got = "none" if found is None else str(tuple(found.shape))
        raise ValueError(f"the trained model has the looped one's layers: got {got} for {name}, {tuple(like.shape)} here")
    return found


def _correct(made: SequenceModel, deep: Mapping[str, Tensor], count: int, times: int) -> None:
    """Every pair from the singular value decomposition of what the shared matrix lacks of each layer's."""
    for index, layer in enumerate(made.layers):
        for name, shared in layer.named_parameters():
            key = f"layers_{index}_" + name.replace(".", "_")
            if key not in made.lora:
                continue
            pair: Any = made.lora[key]
            for t in range(times):
                rest = deep[f"layers.{t * count + index}.{name}"] - shared
                u, s, vh = torch.linalg.svd(rest, full_matrices=False)
                rank = min(pair.A.shape[1], len(s))
                pair.A[t].zero_()
                pair.B[t].zero_()
                pair.A[t, :rank] = vh[:rank]
                pair.B[t, :, :rank] = u[:, :rank] * s[:rank]
