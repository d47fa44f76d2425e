"""An operator's module with values, and inputs for it.

Legend: B batch, T tokens, H and W rows and columns of a grid, D width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..space.model import initialise
from ..space.operator import Length, Operator

__all__ = ["built", "example_inputs", "fresh", "hold", "run", "run_step", "streams"]


def hold(promise: bool, text: str) -> None:
    """Raise AssertionError with `text` unless `promise`."""
    if not promise:
        raise AssertionError(text)


def built(config: Operator, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The operator's module, filled as its declarations say. Parameters that start at zero get small random values,
    so that a test sees them."""
    module = config.build(width).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    declared = config.axes(width)
    for name, parameter in module.named_parameters():
        initialise(parameter.data, declared[name], generator)
        if declared[name].init.kind == "zeros":
            parameter.data.normal_(0.0, 0.1, generator=generator)
    return module


def example_inputs(config: Operator, width: int, batch: int = 2, length: Length | None = None, seed: int = 1,
                   dtype: torch.dtype = torch.float32, device: Any = None) -> tuple[Any, ...]:
    """Random arguments of the module's forward: ids, pixels, frames, or activations with the table a tied head reads, what
    a join adds to them, or the dictionary that layers share. A length (height, width) gives a grid; default: 9 tokens, 5 by
    4 for spatial operators."""
    generator = torch.Generator().manual_seed(seed)
    size = length or ((5, 4) if config.spatial else 9)
    tokens = size if isinstance(size, tuple) else (size,)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).to(device)

    if config.kind == "embedding":
        if hasattr(config, "vocab"):
            return (torch.randint(config.vocab, (batch, *tokens), generator=generator).to(device),)
        if hasattr(config, "steps"):
            return (random(batch, config.steps, tokens[0]),)
        if hasattr(config, "features"):
            return (random(batch, tokens[0] * config.stack, config.features),)        # type: ignore[attr-defined]
        return (random(batch, config.channels, *config.sides),)                       # type: ignore[attr-defined]
    x_BTD = random(batch, *tokens, width)
    if getattr(config, "tied", False):
        return x_BTD, random(11, width)
    given = (x_BTD, random(batch, *tokens, width)) if config.kind == "join" else (x_BTD,)
    shared = _shared(config, width)
    if shared is None:
        return given
    if getattr(config, "reads_condition", False):
        return *given, {"condition": random(batch, 1, width)}
    return *given, {name: random(batch, *tokens, width) for name in shared}


def _shared(config: Operator, width: int) -> tuple[str, ...] | None:
    """What a module reads of the dictionary that layers hand on: the memory of an encoder, or what it writes itself."""
    kind = type(config.build(width))
    if not getattr(kind, "shares", False):
        return None
    is_needed = config.cross or inspect.signature(kind.forward).parameters["shared"].default is inspect.Parameter.empty
    return ("memory",) if is_needed else ()


def run(module: Any, inputs: tuple[Any, ...], x_BTD: Tensor | None = None) -> Tensor:
    """The module's output for `inputs`, or for other activations with the rest of them."""
    y_BTD: Tensor = module(*fresh(inputs if x_BTD is None else (x_BTD, *inputs[1:])))
    return y_BTD


def run_step(module: Any, inputs: tuple[Any, ...], x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One decoding step, with the rest of `inputs` behind the state."""
    return module.step(x_BTD, state, *fresh(inputs[1:]))                              # type: ignore[no-any-return]


def fresh(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with dictionaries of their own, since modules write what they share into them."""
    return tuple(dict(part) if isinstance(part, dict) else part for part in inputs)


def streams(config: Operator, width: int) -> bool:
    """Whether the module decodes with a state of its own; an operator on single tokens needs none."""
    if not config.streaming or config.kind not in ("mixer", "channel"):
        return False
    return hasattr(config.build(width), "step")
