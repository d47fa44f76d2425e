"""What a module must do: as declared, causally, the same in one pass and token by token, and as the paper says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..space.operator import Operator
from .modules import built, example_inputs, hold, run, run_step

__all__ = ["LENGTHS", "Reference", "check_causality", "check_declaration", "check_pointwise", "check_reference",
           "check_streaming", "check_zero"]

Reference = Callable[[Mapping[str, Tensor], Any, Tensor], Tensor]
LENGTHS = (1, 2, 17, 70)
GRIDS = ((1, 1), (4, 4), (5, 7), (1, 6))


def check_declaration(config: Operator, width: int) -> None:
    """`axes` names every entry of the module's state_dict with its shape; the module keeps nothing else; `check` accepts
    what can be built; what is a statistic takes no gradient."""
    config.check(width, "contract")
    axes = config.axes(width)
    declared = {name: entry.shape for name, entry in axes.items()}
    module = config.build(width)
    actual = {name: tuple(p.shape) for name, p in module.named_parameters()}
    hold(declared == actual, f"axes() declares every parameter of the module of {config} at width {width}: "
                             f"they differ in {sorted(set(declared.items()) ^ set(actual.items()))}")
    hold(set(module.state_dict()) == set(actual), f"the state_dict is the parameters: {config} also has "
                                                  f"{sorted(set(module.state_dict()) ^ set(actual))}")
    hidden = [name for name, _ in module.named_buffers()] + list(_constants(module))
    hold(not hidden, f"a module keeps no buffers, it computes constants in forward: {config} has {hidden}")
    for name, p in built(config, width).named_parameters():
        hold(bool(p.isfinite().all()), f"{name} of {config} starts with values that are not finite")
    for name, p in module.named_parameters():
        hold(p.requires_grad != axes[name].statistic, f"exactly the statistics take no gradient: {name} of {config} is "
                                                      f"declared statistic={axes[name].statistic}")


def _constants(module: nn.Module) -> Iterator[str]:
    """Tensors kept as plain attributes: no device move, copy or export would see them."""
    for prefix, part in module.named_modules():
        yield from (f"{prefix}.{name}" for name, value in vars(part).items() if isinstance(value, Tensor))


@torch.no_grad()
def check_zero(config: Operator, width: int) -> None:
    """An operator that says `keeps_zero` gives zeros for zeros, whatever its weights."""
    if not config.keeps_zero:
        return
    inputs = example_inputs(config, width)
    y_BTD = run(built(config, width), inputs, torch.zeros_like(inputs[0]))
    hold(not y_BTD.any(), f"keeps_zero gives zeros for zeros: {config} at width {width} gave up to {y_BTD.abs().max()}")


@torch.no_grad()
def check_causality(config: Operator, width: int) -> None:
    """Changing later tokens changes no bit of earlier outputs.

    An operator with `causal_to_the_bit = False` (transforms over the whole sequence round differently) is held to
    1e-12 of its outputs in float64 instead.
    """
    if not config.causal:
        return
    exact = getattr(config, "causal_to_the_bit", True)
    dtype = torch.float32 if exact else torch.float64
    module = built(config, width, dtype=dtype)
    for length in LENGTHS[2:]:
        inputs = example_inputs(config, width, length=length, dtype=dtype)
        y_BTD = run(module, inputs)
        for kept in (1, length // 3, length - 1):
            changed = inputs[0].clone()
            changed[:, kept:] = example_inputs(config, width, length=length, seed=2, dtype=dtype)[0][:, kept:]
            error = (run(module, inputs, changed)[:, :kept] - y_BTD[:, :kept]).abs().max().item()
            allowed = 0.0 if exact else 1e-12 * y_BTD.abs().max().item()
            hold(error <= allowed, f"outputs do not depend on later tokens: {config} at width {width} moved the first "
                                   f"{kept} of {length} outputs by {error:.1e}")


@torch.no_grad()
def check_streaming(config: Operator, width: int, tolerance: float = 1e-5) -> None:
    """One call over all tokens, any split in two, and token by token give the same outputs; a given state stays.

    They agree to `tolerance` in float32. Where rounding counts for more, as where a norm follows a sum that nearly cancels,
    they have to agree to 1e-10 in float64.
    """
    module: Any = built(config, width)
    for length in LENGTHS:
        inputs = example_inputs(config, width, length=length)
        whole = run(module, inputs)
        hold(torch.equal(whole, run_step(module, inputs, inputs[0], None)[0]),
             f"forward(x) is step(x, None)[0]: {config} differs")
        for name, cuts in (("token by token", range(1, length)), ("in two halves", [length // 2]),
                           ("the last token alone", [length - 1])):
            cuts = [cut for cut in cuts if cut > 0]
            error = _error_of_steps(config, module, inputs, cuts)
            if error > tolerance:
                exact = example_inputs(config, width, length=length, dtype=torch.float64)
                apart = _error_of_steps(config, built(config, width, dtype=torch.float64), exact, cuts)
                hold(apart <= 1e-10, f"decoding {name} equals the prefill of {length} tokens to {tolerance:g}: {config} at "
                                     f"width {width} differs by {error:.1e}, and in float64 by {apart:.1e}")


def _error_of_steps(config: Operator, module: Any, inputs: tuple[Any, ...], cuts: Sequence[int]) -> float:
    """The largest difference of outputs in pieces and in one pass, over the largest output or one."""
    whole = run(module, inputs)
    difference = (_stepped(config, module, inputs, cuts) - whole).abs().max().item()
    return float(difference / max(1.0, whole.abs().max().item()))


@torch.no_grad()
def check_pointwise(config: Operator, width: int, tolerance: float = 1e-5) -> None:
    """A module that says it streams and has no `step` works on each token alone."""
    module = built(config, width)
    (x_BTD,) = example_inputs(config, width, length=9)
    alone = torch.cat([module(x_BTD[:, t:t + 1]) for t in range(x_BTD.shape[1])], dim=1)
    error = (module(x_BTD) - alone).abs().max().item()
    hold(error <= tolerance, f"an operator without step() works on each token alone: {config} at {width} differs "
                             f"by {error:.1e}; give its module init_state and step, or declare streaming = False")


def _stepped(config: Operator, module: Any, inputs: tuple[Any, ...], cuts: Sequence[int]) -> Tensor:
    """Outputs of the activations consumed in the pieces between `cuts`."""
    x_BTD = inputs[0]
    state = module.init_state(len(x_BTD), dtype=x_BTD.dtype)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, x_BTD.shape[1]], strict=True):
        before = copy.deepcopy(state)
        y_BTD, after = run_step(module, inputs, x_BTD[:, start:end], state)
        hold(_same(before, state), f"step leaves the given state as it was: that of {config} changed it")
        hold(_same(_stripped(before), _stripped(after)), f"a state keeps its keys and types: {config} went from "
                                                         f"{_stripped(before)} to {_stripped(after)}")
        pieces.append(y_BTD)
        state = after
    return torch.cat(pieces, dim=1)


def _stripped(state: dict[str, Any]) -> dict[str, str]:
    return {key: type(value).__name__ for key, value in state.items()}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y
                                      for x, y in zip(a.values(), b.values(), strict=True))


def check_reference(config: Operator, width: int, reference: Reference, tolerance: float = 1e-9) -> None:
    """Outputs and gradients equal `reference` in float64, relative to their largest entry; on grids where the operator is
    spatial."""
    module = built(config, width, dtype=torch.float64)
    weights = dict(module.named_parameters())
    for length in GRIDS if config.spatial else LENGTHS:
        x_BTD = example_inputs(config, width, length=length, dtype=torch.float64)[0]
        x_BTD.requires_grad_()
        ours, theirs = module(x_BTD), reference(weights, config, x_BTD)
        _close(f"outputs of {config} at width {width}, {length} tokens", ours, theirs, tolerance)
        weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        leaves = {"the input": x_BTD, **{name: w for name, w in weights.items() if w.requires_grad}}
        pairs = zip(_gradients(ours * weight, leaves), _gradients(theirs * weight, leaves), strict=True)
        for name, (mine, wanted) in zip(leaves, pairs, strict=True):
            _close(f"gradients of {config} at width {width}, {length} tokens, to {name}", mine, wanted, 10 * tolerance)


def _gradients(output: Tensor, leaves: Mapping[str, Tensor]) -> Iterator[Tensor]:
    yield from torch.autograd.grad(output.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)


def _close(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    hold(ours.shape == theirs.shape, f"{what} have shape {tuple(ours.shape)}, the reference {tuple(theirs.shape)}")
    scale = max(theirs.abs().max().item(), 1e-3)
    error = (ours - theirs).abs().max().item() / scale
    hold(error <= tolerance, f"{what} equal the reference to {tolerance:g}: differ by {error:.1e}")
