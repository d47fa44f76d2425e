"""What conversions share: operators of a trained network exchanged for others, and how far outputs move."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from ..equivalents.comparing import declared_by, in_double, rewritten, sample_inputs, with_weights
from ..macros.base import Macro
from ..operator import Operator, Source

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["Tensors", "built_from", "difference", "exchanged", "from_paper"]

F = TypeVar("F", bound=Callable[..., Any])
Tensors = dict[str, Tensor]
Change = Callable[[Operator], Operator | None]                   # None where an operator stays
Move = Callable[[str, Any, Any, int, Tensors], Tensors]          # (name, before, after, width, weights by key) -> weights


def from_paper(source: Source, proof: str) -> Callable[[F], F]:
    """Say which paper a conversion is from, and the test that proves it."""
    def marked(function: F) -> F:
        vars(function).update(source=source, proof=proof)
        return function

    return marked


def built_from(model: Any) -> Architecture:
    """What the model was built from. Raises ValueError for a module of another origin, or one whose loops have low-rank
    corrections of their matrices."""
    architecture = declared_by(model)
    recursions = [architecture.plan.recursion, *(op.recursion for _, op in architecture.modules if isinstance(op, Macro))]
    if any(getattr(recursion, "lora_rank", 0) for recursion in recursions):
        raise ValueError("corrections per iteration belong to the matrices as they are: got lora_rank; use Loop(times) "
                         "without")
    return architecture


def exchanged(model: SequenceModel, change: Change, move: Move, layers: Collection[int] | None = None,
              wanted: str = "an operator to convert") -> tuple[SequenceModel, Tensors]:
    """The network with other operators in its body, and its weights in float64, before they are rounded.

    change: the operator instead of one, None to leave it; it is asked for each operator inside macros as well. move: the
    weights of the new operator. layers: which items of the body; all of them by default.

    Raises ValueError where nothing was changed, or for an item of the body that is not there.
    """
    architecture = built_from(model)
    plan: Any = architecture.plan
    chosen = _chosen(layers, len(plan.layers))
    body = tuple(rewritten(item, change) if i in chosen else item for i, item in enumerate(plan.layers))
    if body == plan.layers:
        raise ValueError(f"a conversion needs {wanted}: got {[type(op).__name__ for _, op in architecture.modules]}")
    weights = in_double(model)
    for place in architecture.placed:
        after = change(place.operator) if _item_of(place.name) in chosen else None
        if after is not None:
            inside = {key: weights.pop(key) for key in list(weights) if key.startswith(f"{place.name}.")}
            start = len(place.name) + 1
            moved = move(place.name, place.operator, after, place.width, {k[start:]: w for k, w in inside.items()})
            weights |= {f"{place.name}.{key}": tensor for key, tensor in moved.items()}
    return with_weights(plan, {"body": body}, weights, model), weights


def _chosen(layers: Collection[int] | None, count: int) -> set[int]:
    chosen = set(range(count)) if layers is None else set(layers)
    odd = sorted(chosen - set(range(count)))
    if odd:
        raise ValueError(f"layers are counted from 0 to {count - 1}: got {odd[0]}")
    return chosen


def _item_of(name: str) -> int:
    """Which item of the body an operator stands in, -1 for embedding, norm and head."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


@torch.no_grad()
def difference(model: SequenceModel, made: SequenceModel, inputs: Tensor | None = None) -> float:
    """The largest difference of two networks' outputs over the first one's largest output, computed in float64.

    Both in evaluation mode. inputs: what they are compared on; random ones by default.
    """
    inputs = sample_inputs(model.architecture.plan.embed) if inputs is None else inputs     # type: ignore[union-attr]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    outputs = []
    for each in (model, made):
        was_training = each.training
        outputs.append(functional_call(each.eval(), in_double(each), (inputs,), tie_weights=False))
        each.train(was_training)
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp(min=1e-30))
