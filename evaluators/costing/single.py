"""One operator or macro, run once without values: what it does, and what lives meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...space.macros.base import Macro
from ...space.macros.running import as_sequence
from ...space.model import initialise
from ...space.operator import Length, Operator, tokens_of
from ..latency.memory import found_tensors
from .counted import Counted, counted

__all__ = ["counts_of", "inputs_of", "lasting_numel", "macro_peak"]


def counts_of(config: Operator, width: int, length: Length, phase: str, batch: int) -> Counted | None:
    """What one run does on the meta device, or on random numbers where these decide what runs, as with sparse experts; None
    where the operator does not run alone."""
    if config.cross or getattr(config, "reads_shared", False) or getattr(config, "reads_condition", False):
        return None
    try:
        return _ran(config, width, length, phase, batch, torch.device("meta"))
    except NotImplementedError:
        return _ran(config, width, length, phase, batch, torch.device("cpu"))
    except ValueError:                              # it is for shorter sequences
        return None


def _ran(config: Operator, width: int, length: Length, phase: str, batch: int, device: torch.device) -> Counted | None:
    given = inputs_of(config, width, length, batch, device)
    if given is None:
        return None
    with torch.device(device):
        module: Any = config.build(width).eval()
    if device.type == "cpu":
        generator = torch.Generator().manual_seed(0)
        given = tuple(torch.randn(one.shape, generator=generator) for one in given)
        tensors = dict(module.named_parameters())
        for name, declared in config.axes(width).items():
            initialise(tensors[name].data, declared, generator)
    if phase == "prefill":
        return counted(lambda: module(*given)) if tokens_of(length) else Counted()
    if not config.streaming or config.kind == "embedding":
        return None
    token = torch.zeros(batch, 1, width, device=device)
    if not hasattr(module, "step"):
        return counted(lambda: module(token, *(token if config.kind == "join" else one for one in given[1:])))
    state = module.init_state(batch, dtype=torch.float32, device=device)
    if tokens_of(length):
        with torch.no_grad():
            _, state = module.step(given[0], state)
    return counted(lambda: module.step(token, state))


def inputs_of(config: Any, width: int, length: Length, batch: int, device: torch.device) -> tuple[Tensor, ...] | None:
    """What goes into one operator, without values: the stream, both of what is joined, the table of a tied head, pixels or
    frames; None for ids, whose rows are looked up and not read."""
    sides = length if isinstance(length, tuple) else (length,)

    def empty(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    if config.kind == "embedding":
        if hasattr(config, "vocab"):
            return None
        if hasattr(config, "steps"):
            return (empty(batch, config.steps, tokens_of(length)),)
        if hasattr(config, "features"):
            return (empty(batch, tokens_of(length) * config.stack, config.features),)
        return (empty(batch, config.channels, *config.sides),)
    stream = empty(batch, *sides, width)
    if getattr(config, "tied", False):
        return None if config.vocab is None else (stream, empty(config.vocab, width))
    return (stream, stream) if config.kind == "join" else (stream,)


def lasting_numel(config: Any, width: int) -> int:
    """Numbers of a sequence's decode state that stay in float32 where the rest is in a shorter type: sums of recurrences."""
    if not config.state_numel(width, 0):
        return 0                                    # only caches, which grow
    with torch.device("meta"):
        module: Any = config.build(width)
        state = module.init_state(1, dtype=torch.bfloat16, device="meta")
    return sum(one.numel() for one in found_tensors(state) if one.dtype == torch.float32)


def macro_peak(part: Macro, width: int, length: Length, batch: int) -> float | None:
    """Numbers that live at once in a whole macro, with what enters it; None where values decide what runs (torch raises
    RuntimeError on the meta device), or where it reads what other layers hand on."""
    sides = length if isinstance(length, tuple) else (length,)
    with torch.device("meta"):
        module, stream = part.build(width).eval(), torch.zeros(batch, *sides, width)
        try:
            found = counted(lambda: as_sequence(module, stream, True, None))
        except (RuntimeError, KeyError):
            return None
    return found.peak / 4 + stream.numel()
