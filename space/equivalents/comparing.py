"""A network of given parts with given weights, and the proof that it computes what another does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..genome import Genome
from ..macros.base import Macro
from ..operator import Operator
from ..plan import Block, Plan

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["architecture_of", "compared", "declared_by", "each_block", "in_double", "rewritten", "sample_inputs",
           "with_weights"]

TOLERANCE = 1e-9              # of the largest output, in float64


def declared_by(model: Any) -> Architecture:
    """What the model was built from. Raises ValueError for a module of another origin."""
    architecture: Architecture | None = getattr(model, "architecture", None)
    if architecture is None:
        raise ValueError(f"what a network becomes follows from its declaration: got {type(model).__name__}, which was not "
                         "built from an architecture; use architecture.build()")
    return architecture


def architecture_of(model: Any) -> Architecture:
    """What the model was built from. Raises ValueError for a module of another origin, or of another kind of body."""
    architecture = declared_by(model)
    for i, item in enumerate(architecture.plan.layers):
        if not isinstance(item, Block):
            raise ValueError(f"the body is made of blocks at layers[{i}]: got {type(item).__name__}")
    return architecture


def with_weights(plan: Plan, changed: Mapping[str, Any], weights: Mapping[str, Tensor], model: Any) -> SequenceModel:
    """The network of `plan` with some fields changed, and these weights. Raises ValueError where their shapes differ."""
    from ..space import Space

    parts = {"embed": plan.embed, "width": plan.width, "body": plan.layers, "head": plan.head,
             "recursion": plan.recursion, "norm": plan.norm, **changed}
    made = Space(**parts).architecture(Genome({})).build()
    wanted = {name: tuple(p.shape) for name, p in made.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != given:
        odd = sorted(set(wanted.items()) ^ set(given.items()))[0]
        raise ValueError(f"the equivalent network holds the same matrices: got {odd[0]} of shape {odd[1]} on one side alone")
    made = made.to(next(model.parameters()).dtype).train(model.training)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(weights[name])
    return made


def sample_inputs(embed: Operator) -> Tensor:
    """Random inputs that an embedding accepts."""
    generator = torch.Generator().manual_seed(0)
    given: Any = embed
    if hasattr(embed, "vocab"):
        return torch.randint(given.vocab, (2, 12), generator=generator)
    if hasattr(embed, "steps"):
        return torch.randn(2, given.steps, 6, generator=generator)
    if hasattr(embed, "features"):
        return torch.randn(2, 8 * given.stack, given.features, generator=generator)
    return torch.randn(2, given.channels, *given.sides, generator=generator)


@torch.no_grad()
def compared(model: Any, made: SequenceModel, weights: Mapping[str, Tensor], rule: str) -> SequenceModel:
    """`made`, when with `weights` it computes in float64 what the model does, in evaluation mode.

    The weights that `made` holds are these, rounded to the model's precision. Raises ValueError where outputs differ.
    """
    inputs = sample_inputs(model.architecture.plan.embed)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    outputs = []
    for each, given in ((model, in_double(model)), (made, dict(weights))):
        was_training = each.training
        outputs.append(functional_call(each.eval(), given, (inputs,), tie_weights=False))
        each.train(was_training)
    error = (outputs[0] - outputs[1]).abs().max().item() / max(outputs[0].abs().max().item(), 1e-30)
    if not error <= TOLERANCE:
        raise ValueError(f"{rule}: got outputs that differ by {error:.1e}; an operator of the body writes to the stream with "
                         "more than its last matrix, or reads it outside of a norm")
    return made


def in_double(model: Any) -> dict[str, Tensor]:
    """The model's weights by name, in float64 and on the CPU."""
    return {name: p.detach().to("cpu", torch.float64) for name, p in model.named_parameters()}


def rewritten(item: Any, change: Callable[[Operator], Operator | None]) -> Any:
    """An item of a body with its operators exchanged, at every depth; None leaves one as it is."""
    if isinstance(item, tuple):
        return tuple(rewritten(each, change) for each in item)
    if isinstance(item, Macro):
        return replace(item, **{name: rewritten(getattr(item, name), change) for name in item.holds})   # type: ignore[type-var]
    after = change(item) if isinstance(item, Operator) else None
    return item if after is None else after


def each_block(plan: Plan, change: Any) -> tuple[Any, ...]:
    """The blocks of a plan with the fields that `change(block)` gives."""
    return tuple(replace(block, **change(block)) for block in plan.layers)
