"""What is timed: a phase of a module, run in a mode, on inputs that do not lie in the cache already.

Phases: "prefill", a forward pass; "decode", one more token after a prefill, always from the same state, which is what
serving one sequence does; "train", a forward and a backward pass. Modes: "eager", as torch runs it; "compiled", through
torch.compile; "graph", captured once into a CUDA graph and replayed. Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import cache_bytes
from .clock import Work

__all__ = ["DTYPES", "MODES", "PHASES", "check_conditions", "check_names", "placed", "rotated", "work_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PHASES = ("decode", "prefill", "train")
MODES = ("eager", "compiled", "graph")
MOST_INPUTS = 512
COMPILE_CALLS = 2           # the second call compiles what the first one's shapes left open
CAPTURE_CALLS = 3           # before a capture, so that libraries have allocated what they keep


def check_conditions(device: torch.device, phase: str, mode: str, dtype: str, **sizes: float) -> None:
    """Raise ValueError for conditions that cannot be anywhere, or not on this device."""
    check_names(phase, mode, dtype, **sizes)
    if mode == "graph" and device.type != "cuda":
        raise ValueError(f"mode of a latency is 'graph' on CUDA devices only: got {str(device)!r}; use 'eager' or 'compiled'")


def check_names(phase: str, mode: str, dtype: str, **sizes: float) -> None:
    """Raise ValueError for a phase, mode or type that does not exist, two that exclude each other, or a size below 1."""
    for label, value, allowed in (("phase", phase, PHASES), ("mode", mode, MODES), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ValueError(f"{label} of a latency must be one of {', '.join(allowed)}: got {value!r}")
    for label, number in sizes.items():
        if not number >= 1:
            raise ValueError(f"{label} of a latency must be at least 1: got {number!r}")
    if mode == "graph" and phase == "train":
        raise ValueError("a graph replays prefill or decode: got phase 'train'; use mode 'eager' or 'compiled'")


def placed(module: nn.Module, device: torch.device, dtype: torch.dtype, copied: bool = False) -> nn.Module:
    """The module itself where it already is at home, else a copy: the caller's module never moves."""
    at_home = all(p.device == device and p.dtype == dtype for p in module.parameters())
    return module if at_home and not copied else copy.deepcopy(module).to(device=device, dtype=dtype)


def rotated(shape: Sequence[int], device: torch.device, dtype: torch.dtype, vocab: int | None = None) -> list[Tensor]:
    """Random inputs of one shape, together twice as large as the last cache of the device, 512 at most.

    vocab: ids below it, else normal numbers. Each input is the one before moved on by one number, so that many cost no
    more to draw than one.
    """
    size, width = math.prod(shape), 8 if vocab is not None else dtype.itemsize
    count = min(MOST_INPUTS, max(2, math.ceil(2 * cache_bytes(device) / (size * width))))
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(size + count, generator=generator).to(dtype) if vocab is None
               else torch.randint(vocab, (size + count,), generator=generator))
    pool = numbers.to(device).unfold(0, size, 1)[:count].contiguous()
    return [one.view(*shape) for one in pool]


def work_of(module: Any, inputs: list[Tensor], phase: str, mode: str, device: torch.device,
            start: Callable[[], Any] | None = None) -> Work:
    """A phase of `module` over the inputs in turn. start: gives the state before the prefill of a decode.

    The module of a "train" must be a copy: it is set to training and gathers gradients.
    """
    if phase == "train":
        return _training(module, inputs, mode)
    call = module
    if phase == "decode":
        assert start is not None
        with torch.inference_mode():
            _, state = module.step(inputs[0], start())
        inputs = [one[:, -1:].contiguous() for one in inputs]
        step = torch.compile(module.step, dynamic=False) if mode == "compiled" else module.step

        def call(token: Tensor) -> Any:
            return step(token, state)
    elif mode == "compiled":
        call = torch.compile(module, dynamic=False)
    if mode == "graph":
        return _captured(call, inputs, device)
    turn = itertools.cycle(inputs)
    return Work(lambda: call(next(turn)), first=COMPILE_CALLS if mode == "compiled" else 0)


def _training(module: Any, inputs: list[Tensor], mode: str) -> Work:
    """A forward and a backward pass, down to the gradients of the input where it is no token ids."""
    module.train()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    inputs = [one.detach().requires_grad_(one.is_floating_point()) for one in inputs]
    turn, call = itertools.cycle(inputs), torch.compile(module, dynamic=False) if mode == "compiled" else module

    def before() -> None:
        module.zero_grad(set_to_none=True)

    def run() -> None:
        given = next(turn)
        given.grad = None
        loss: Any = sum(out.float().logsumexp(-1).mean() for out in _tensors(call(given)))
        loss.backward()

    return Work(run, before, first=COMPILE_CALLS if mode == "compiled" else 0, grads=True)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of an output that have a gradient."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, (tuple, list, dict)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _captured(call: Callable[[Tensor], Any], inputs: list[Tensor], device: torch.device) -> Work:
    """`call` captured once into a CUDA graph on an input of its own, into which each input is copied before a replay.

    Raises ValueError where it cannot be captured, as when it reads a number back from the device.
    """
    with torch.cuda.device(device), torch.inference_mode():
        fixed = inputs[0].clone()
        side = torch.cuda.Stream(device)                                                # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(CAPTURE_CALLS):
                call(fixed)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = call(fixed)
        except RuntimeError as error:
            raise ValueError("mode='graph' needs work that a CUDA graph can hold: the capture ended with "
                             f"{str(error).splitlines()[0]!r}; use mode='eager' or 'compiled'") from error
    turn = itertools.cycle(inputs)

    def before() -> None:
        fixed.copy_(next(turn))

    def run(_held: Any = kept) -> None:                    # the graph writes where its output lies: keep that
        graph.replay()

    return Work(run, before)
