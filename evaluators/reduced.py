"""A trained network with fewer tokens among some of its layers, and the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..space.equivalents.comparing import with_weights
from ..space.macros.reduced import Reduced

if TYPE_CHECKING:
    from ..space.macros.reductions import Reduction
    from ..space.model import SequenceModel

__all__ = ["reduced"]


def reduced(model: SequenceModel, reduction: Reduction, layers: tuple[int, int] | None = None,
            at: tuple[int, ...] | None = None, restore: bool = False) -> SequenceModel:
    """The model with its items `layers[0]` to `layers[1] - 1` inside `Reduced(..., reduction, at, restore)`; all by default.

    A reduction has no parameters, so every weight stays what it was and nothing is trained. at: counted in these layers.

    Raises:
        ValueError: a module that was not built from an architecture, or with corrections per iteration; items that are not
            there; or a reduction that does not suit the layers.
    """
    plan: Any = getattr(getattr(model, "architecture", None), "plan", None)
    if plan is None or plan.recursion.lora_rank:
        raise ValueError("layers are known from a model's architecture, without low-rank corrections per iteration: got "
                         f"{type(model).__name__}{'' if plan is None else f' with {plan.recursion!r}'}")
    first, last = layers or (0, len(plan.layers))
    if not 0 <= first < last <= len(plan.layers):
        raise ValueError(f"layers are from one item of the body to another: got {layers} of {len(plan.layers)}; use "
                         f"(0, {len(plan.layers)})")
    inner = Reduced(tuple(plan.layers[first:last]), reduction, at, restore)
    weights = {_moved(name, first, last): p.detach() for name, p in model.named_parameters()}
    return with_weights(plan, {"body": (*plan.layers[:first], inner, *plan.layers[last:])}, weights, model)


def _moved(name: str, first: int, last: int) -> str:
    """Where a parameter of a model stands once items `first` to `last - 1` are layers of one."""
    if not name.startswith("layers."):
        return name
    _, number, rest = name.split(".", 2)
    index = int(number)
    if first <= index < last:
        return f"layers.{first}.layers.{index - first}.{rest}"
    return f"layers.{index if index < first else index - (last - first) + 1}.{rest}"
