"""The contract of operators, as functions to call from a test: `check_operator(MyMixer(heads=2), width=32)`.

Each `check_*` raises AssertionError naming the promise that does not hold, with the numbers that show it. They hold
for operators of this package and for anybody's: a new operator's whole test file may be

    def test_my_mixer():
        check_operator(MyMixer(heads=4), width=64, smaller=[(MyMixer(heads=2), 32)], reference=my_loop_in_float64)

Everything runs on the CPU in a second or two. Modules are filled as their declarations say, from fixed seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .space.axes import Param, flat_indices, largest, take
from .space.model import initialise
from .space.operator import Operator

__all__ = ["built", "check_causality", "check_costs", "check_declaration", "check_elasticity", "check_operator",
           "check_pointwise", "check_reference", "check_state", "check_streaming", "count_macs", "example_inputs"]

Reference = Callable[[Mapping[str, Tensor], Any, Tensor], Tensor]
LENGTHS = (1, 2, 17, 70)


def check_operator(config: Operator, width: int, *, smaller: Sequence[tuple[Operator, int]] = (),
                   reference: Reference | None = None) -> None:
    """Every promise an operator makes.

    Args:
        config: the operator at the largest sizes to test.
        width: of the residual stream.
        smaller: (config, width) pairs whose weights must be parts of the largest one's.
        reference: `reference(weights, config, x_BTD) -> y_BTD` in float64, straight from the paper's formula.
    """
    for each, size in [(config, width), *smaller]:
        check_declaration(each, size)
        if each.kind in ("mixer", "channel", "norm"):
            check_causality(each, size)
            check_costs(each, size)
        if _streams(each, size):
            check_streaming(each, size)
            check_state(each, size)
        elif each.streaming and each.kind in ("mixer", "channel"):
            check_pointwise(each, size)
        if reference is not None:
            check_reference(each, size, reference)
    check_elasticity([(config, width), *smaller])


def built(config: Operator, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The operator's module, filled as its declarations say. Parameters that start at zero get small random values,
    so that a test sees them."""
    with torch.device("meta"):
        module = config.build(width)
    module = module.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    declared = config.axes(width)
    for name, parameter in module.named_parameters():
        initialise(parameter.data, declared[name], generator)
        if declared[name].init.kind == "zeros":
            parameter.data.normal_(0.0, 0.1, generator=generator)
    return module


def example_inputs(config: Operator, width: int, batch: int = 2, length: int = 9, seed: int = 1,
                   dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random arguments of the module's forward: ids, pixels, or activations with the table a tied head reads."""
    generator = torch.Generator().manual_seed(seed)
    if config.kind == "embedding" and hasattr(config, "vocab"):
        return (torch.randint(config.vocab, (batch, length), generator=generator),)
    if config.kind == "embedding":
        height, wide = config.sides                                                   # type: ignore[attr-defined]
        shape = (batch, config.channels, height, wide)                                # type: ignore[attr-defined]
        return (torch.randn(shape, generator=generator, dtype=dtype),)
    x_BTD = torch.randn(batch, length, width, generator=generator, dtype=dtype)
    if getattr(config, "tied", False):
        return x_BTD, torch.randn(11, width, generator=generator, dtype=dtype)
    return (x_BTD,)


def check_declaration(config: Operator, width: int) -> None:
    """`axes` names every parameter with its shape; the module keeps no buffers; `check` accepts what can be built."""
    config.check(width, "contract")
    declared = {name: entry.shape for name, entry in config.axes(width).items()}
    module = config.build(width)
    actual = {name: tuple(p.shape) for name, p in module.named_parameters()}
    _hold(declared == actual, f"axes() declares every parameter of the module of {config} at width {width}: "
                              f"they differ in {sorted(set(declared.items()) ^ set(actual.items()))}")
    buffers = [name for name, _ in module.named_buffers()]
    _hold(not buffers, f"a module keeps no buffers, it computes constants in forward: {config} has {buffers}")
    for name, p in built(config, width).named_parameters():
        _hold(bool(p.isfinite().all()), f"{name} of {config} starts with values that are not finite")


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
        (x_BTD,) = example_inputs(config, width, length=length, dtype=dtype)
        y_BTD = module(x_BTD)
        for kept in (1, length // 3, length - 1):
            changed = x_BTD.clone()
            changed[:, kept:] = example_inputs(config, width, length=length, seed=2, dtype=dtype)[0][:, kept:]
            error = (module(changed)[:, :kept] - y_BTD[:, :kept]).abs().max().item()
            allowed = 0.0 if exact else 1e-12 * y_BTD.abs().max().item()
            _hold(error <= allowed, f"outputs do not depend on later tokens: {config} at width {width} moved the first "
                                    f"{kept} of {length} outputs by {error:.1e}")


@torch.no_grad()
def check_streaming(config: Operator, width: int, tolerance: float = 1e-5) -> None:
    """One call over all tokens, any split in two, and token by token give the same outputs; a given state stays."""
    module: Any = built(config, width)
    for length in LENGTHS:
        (x_BTD,) = example_inputs(config, width, length=length)
        whole = module(x_BTD)
        _hold(torch.equal(whole, module.step(x_BTD, None)[0]), f"forward(x) is step(x, None)[0]: {config} differs")
        for name, cuts in (("token by token", range(1, length)), ("in two halves", [length // 2]),
                           ("the last token alone", [length - 1])):
            cuts = [cut for cut in cuts if cut > 0]
            error = (_stepped(config, module, x_BTD, cuts) - whole).abs().max().item()
            scale = max(1.0, whole.abs().max().item())
            _hold(error <= tolerance * scale, f"decoding {name} equals the prefill of {length} tokens to "
                                              f"{tolerance:g}: {config} at width {width} differs by {error:.1e}")


@torch.no_grad()
def check_pointwise(config: Operator, width: int, tolerance: float = 1e-5) -> None:
    """A module that says it streams and has no `step` works on each token alone."""
    module = built(config, width)
    (x_BTD,) = example_inputs(config, width)
    alone = torch.cat([module(x_BTD[:, t:t + 1]) for t in range(x_BTD.shape[1])], dim=1)
    error = (module(x_BTD) - alone).abs().max().item()
    _hold(error <= tolerance, f"an operator without step() works on each token alone: {config} at {width} differs "
                              f"by {error:.1e}; give its module init_state and step, or declare streaming = False")


def _stepped(config: Operator, module: Any, x_BTD: Tensor, cuts: Sequence[int]) -> Tensor:
    """Outputs of `x_BTD` consumed in the pieces between `cuts`."""
    state = module.init_state(len(x_BTD), dtype=x_BTD.dtype)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, x_BTD.shape[1]], strict=True):
        before = copy.deepcopy(state)
        y_BTD, after = module.step(x_BTD[:, start:end], state)
        _hold(_same(before, state), f"step leaves the given state as it was: that of {config} changed it")
        _hold(_same(_stripped(before), _stripped(after)), f"a state keeps its keys and types: {config} went from "
                                                          f"{_stripped(before)} to {_stripped(after)}")
        pieces.append(y_BTD)
        state = after
    return torch.cat(pieces, dim=1)


def _stripped(state: dict[str, Any]) -> dict[str, str]:
    return {key: type(value).__name__ for key, value in state.items()}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y
                                      for x, y in zip(a.values(), b.values(), strict=True))


@torch.no_grad()
def check_state(config: Operator, width: int) -> None:
    """`state_numel` is what one sequence's state holds after a number of tokens."""
    module: Any = built(config, width)
    for length in (0, *LENGTHS):
        state = module.init_state(1)
        if length:
            _, state = module.step(example_inputs(config, width, batch=1, length=length)[0], state)
        held = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
        declared = config.state_numel(width, length)
        _hold(held == declared, f"state_numel is the true size of the state: {config} at width {width} declares "
                                f"{declared} after {length} tokens and holds {held}")


@torch.no_grad()
def check_costs(config: Operator, width: int, length: int = 100) -> None:
    """Declared multiply-adds against torch's own counter, which here also counts transforms and triangular solves.

    The next token: equal to 2 %, but element-wise recurrences, which are not counted, may add up to four multiply-adds
    per number of the state. A whole sequence: at most what is executed, and at least 60 % of it or of one token after
    the other, whichever is less, since masked pairs are executed and not declared.
    """
    with torch.device("meta"):
        module: Any = config.build(width)
        x_BTD = torch.empty(1, length, width)
        executed, declared = count_macs(module, x_BTD), config.macs(width, length)
    elementwise = 4 * config.state_numel(width, length)
    one_by_one = sum(config.decode_macs(width, seen) for seen in range(length))
    _hold(0.6 * min(executed, one_by_one) <= declared <= 1.02 * executed + elementwise * length,
          f"macs() agrees with torch's counter: {config} at width {width} declares {declared:.0f} for {length} tokens, "
          f"torch counts {executed:.0f}, and decode_macs adds up to {one_by_one:.0f}")
    if not _streams(config, width):
        return
    with torch.device("meta"):
        _, state = module.step(x_BTD, module.init_state(1))
        executed = count_macs(lambda x_B1D: module.step(x_B1D, state), x_BTD[:, :1])
    declared = config.decode_macs(width, length)
    _hold(0.98 * executed <= declared <= 1.02 * executed + elementwise,
          f"decode_macs() agrees with torch's counter: {config} at width {width} declares {declared:.0f} after "
          f"{length} tokens and torch counts {executed:.0f}")


def count_macs(call: Callable[[Tensor], Any], x_BTD: Tensor) -> float:
    """Multiply-adds that torch's counter sees, plus triangular solves, and transforms at 2.5 n log2 n operations per
    real transform of n numbers. On the meta device fused attention counts as the products it stands for."""
    aten = torch.ops.aten
    also = {aten._fft_r2c: lambda x, dim, *_, **__: _transform(x, dim), aten._fft_c2r: _inverse_transform,
            aten.linalg_solve_triangular: lambda a, b, *_, **__: math.prod(b) * a[-1]}
    with FlopCounterMode(display=False, custom_mapping=also) as counter:
        call(x_BTD)
    return float(counter.get_total_flops() / 2)


def _transform(shape: Sequence[int], dim: Sequence[int]) -> float:
    return 2.5 * math.prod(shape) * math.log2(math.prod(shape[d] for d in dim))


def _inverse_transform(x: Sequence[int], dim: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> float:
    return _transform(out_shape, dim)


def check_elasticity(members: Sequence[tuple[Operator, int]]) -> None:
    """Each member runs on what it takes from tensors that hold all of them; outputs and gradients equal, bit for bit,
    those of a module with its own copies, entries it does not take get no gradient, and views agree to 1e-5."""
    held = _held(members)
    generator = torch.Generator().manual_seed(3)
    stored = {address: torch.empty(declared.shape, requires_grad=True) for address, declared in held.items()}
    for address, tensor in stored.items():
        initialise(tensor.data, held[address], generator)
    for config, width in members:
        _check_member(config, width, stored, held)


def _address(name: str, declared: Param) -> str:
    return f"{name}@{declared.shape}" if declared.share == "own" else name


def _held(members: Sequence[tuple[Operator, int]]) -> dict[str, Param]:
    wanted: dict[str, list[Param]] = {}
    for config, width in members:
        for name, declared in config.axes(width).items():
            wanted.setdefault(_address(name, declared), []).append(declared)
    return {address: largest(declared) for address, declared in wanted.items()}


def _check_member(config: Operator, width: int, stored: dict[str, Tensor], held: dict[str, Param]) -> None:
    declared = config.axes(width)
    inputs = example_inputs(config, width)
    with torch.device("meta"):
        shell = config.build(width)
    copies = config.build(width)
    taken, views = {}, {}
    for name, want in declared.items():
        address = _address(name, want)
        views[name] = take(stored[address], held[address], want)
        taken[name] = views[name].contiguous()
        copies.get_parameter(name).data = taken[name].detach().clone()
    seen = functional_call(shell, views, inputs)
    y, own = functional_call(shell, taken, inputs), copies(*inputs)
    what = f"{config} at width {width}"
    _hold(torch.equal(y, own), f"taken weights compute what copies compute, bit for bit: {what} differs")
    _hold(torch.allclose(seen, own, rtol=1e-5, atol=1e-5), f"views compute what copies compute to 1e-5: {what} "
                                                           f"differs by {(seen - own).abs().max():.1e}")
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    parameters = dict(copies.named_parameters())
    if not parameters:
        return
    wanted = torch.autograd.grad((own * weight).sum(), list(parameters.values()), allow_unused=True)
    shared = [stored[_address(name, declared[name])] for name in parameters]
    got = torch.autograd.grad((y * weight).sum(), shared, allow_unused=True)
    for name, mine, theirs in zip(parameters, wanted, got, strict=True):
        _check_gradient(f"{name} of {what}", mine, theirs,
                        flat_indices(held[_address(name, declared[name])], declared[name]))


def _check_gradient(what: str, own: Tensor | None, shared: Tensor | None, indices: Tensor) -> None:
    _hold(own is not None and shared is not None, f"every parameter takes part: {what} has no gradient")
    assert own is not None and shared is not None
    flat = shared.flatten()
    _hold(torch.equal(flat[indices], own.flatten()), f"gradients through a take equal those of a copy: {what}")
    rest = torch.ones_like(flat, dtype=torch.bool)
    rest[indices] = False
    _hold(not flat[rest].any(), f"entries that were not taken get no gradient: {what}")


def check_reference(config: Operator, width: int, reference: Reference, tolerance: float = 1e-9) -> None:
    """Outputs and gradients equal `reference` in float64, relative to their largest entry."""
    module = built(config, width, dtype=torch.float64)
    weights = dict(module.named_parameters())
    for length in LENGTHS:
        (x_BTD,) = example_inputs(config, width, length=length, dtype=torch.float64)
        x_BTD.requires_grad_()
        ours, theirs = module(x_BTD), reference(weights, config, x_BTD)
        _close(f"outputs of {config} at width {width}, {length} tokens", ours, theirs, tolerance)
        weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        leaves = {"the input": x_BTD, **weights}
        pairs = zip(_gradients(ours * weight, leaves), _gradients(theirs * weight, leaves), strict=True)
        for name, (mine, wanted) in zip(leaves, pairs, strict=True):
            _close(f"gradients of {config} at width {width}, {length} tokens, to {name}", mine, wanted, 10 * tolerance)


def _gradients(output: Tensor, leaves: Mapping[str, Tensor]) -> Iterator[Tensor]:
    yield from torch.autograd.grad(output.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)


def _close(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    _hold(ours.shape == theirs.shape, f"{what} have shape {tuple(ours.shape)}, the reference {tuple(theirs.shape)}")
    scale = max(theirs.abs().max().item(), 1e-3)
    error = (ours - theirs).abs().max().item() / scale
    _hold(error <= tolerance, f"{what} equal the reference to {tolerance:g}: differ by {error:.1e}")


def _streams(config: Operator, width: int) -> bool:
    """Whether the module decodes with a state of its own; an operator on single tokens needs none."""
    if not config.streaming or config.kind not in ("mixer", "channel"):
        return False
    with torch.device("meta"):
        return hasattr(config.build(width), "step")


def _hold(promise: bool, text: str) -> None:
    if not promise:
        raise AssertionError(text)
