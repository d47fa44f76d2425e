"""Weights taken from tensors that hold several sizes: the same outputs, gradients and training as copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..evaluators.optim import MaskedAdamW
from ..space.axes import Param, flat_indices, largest, take
from ..space.model import initialise
from ..space.operator import Operator
from .modules import example_inputs, fresh, hold, run

__all__ = ["check_elasticity", "check_training"]

Members = Sequence[tuple[Operator, int]]


class Shared(NamedTuple):
    """Tensors that hold all members, by address, and their declarations."""

    tensors: dict[str, Tensor]
    held: dict[str, Param]

    def take(self, name: str, wanted: Param) -> Tensor:
        address = _address(name, wanted)
        return take(self.tensors[address], self.held[address], wanted)

    def indices(self, name: str, wanted: Param) -> Tensor:
        return flat_indices(self.held[_address(name, wanted)], wanted)


class Member(NamedTuple):
    """One operator twice: a shell that is given taken weights, and a module with copies of them."""

    config: Operator
    declared: dict[str, Param]
    inputs: tuple[Any, ...]
    shell: nn.Module
    copies: nn.Module
    what: str

    def trained(self) -> list[str]:
        return [name for name, p in self.copies.named_parameters() if p.requires_grad]

    def output(self, shared: Shared, packed: bool = True) -> Tensor:
        """The shell on what it takes: contiguous where `packed`, else as views."""
        views = {name: shared.take(name, wanted) for name, wanted in self.declared.items()}
        weights = {name: view.contiguous() for name, view in views.items()} if packed else views
        y: Tensor = functional_call(self.shell, weights, fresh(self.inputs))
        return y


def check_elasticity(members: Members) -> None:
    """Each member runs on what it takes from tensors that hold all of them; outputs and gradients equal, bit for bit,
    those of a module with its own copies, entries it does not take get no gradient, and views agree to 1e-5."""
    shared = _shared(members)
    for config, width in members:
        _check_member(_member(config, width, shared), shared)


def check_training(members: Members, lr: float = 0.05) -> None:
    """A few steps on what is taken and on a module's own copies leave equal weights, and what is not taken alone.

    Packed weights, by plain gradient descent and by AdamW that touches only what is taken: bit for bit. Views, by plain
    gradient descent (AdamW divides by the gradient's size, which makes the last bits of small ones large): to 1e-6.
    """
    for config, width in members:
        for packed, optimizer, steps, tolerance in ((True, _descend, 2, 0.0), (False, _descend, 2, 1e-6),
                                                    (True, _adam, 2, 0.0)):
            shared = _shared(members)
            member = _member(config, width, shared)
            if member.trained():
                _check_steps(member, shared, packed, optimizer, lr, steps)
                for name, wanted in member.declared.items():
                    _check_weight(member, shared, name, wanted, tolerance)


def _address(name: str, declared: Param) -> str:
    return f"{name}@{declared.shape}" if declared.share == "own" else name


def _shared(members: Members) -> Shared:
    wanted: dict[str, list[Param]] = {}
    for config, width in members:
        for name, declared in config.axes(width).items():
            wanted.setdefault(_address(name, declared), []).append(declared)
    held = {address: largest(declared) for address, declared in wanted.items()}
    generator = torch.Generator().manual_seed(3)
    stored = {address: torch.empty(declared.shape) for address, declared in held.items()}
    for address, tensor in stored.items():
        initialise(tensor, held[address], generator)
        tensor.requires_grad_(not held[address].statistic)
    return Shared(stored, held)


def _member(config: Operator, width: int, shared: Shared) -> Member:
    with torch.device("meta"):
        shell = config.build(width)
    declared, copies = config.axes(width), config.build(width)
    for name, wanted in declared.items():
        copies.get_parameter(name).data = shared.take(name, wanted).detach().clone(memory_format=torch.contiguous_format)
    return Member(config, declared, example_inputs(config, width), shell, copies, f"{config} at width {width}")


def _check_member(member: Member, shared: Shared) -> None:
    with torch.no_grad():
        seen = member.output(shared, packed=False)
    y, own, what = member.output(shared), run(member.copies, member.inputs), member.what
    hold(torch.equal(y, own), f"taken weights compute what copies compute, bit for bit: {what} differs")
    hold(torch.allclose(seen, own, rtol=1e-5, atol=1e-5), f"views compute what copies compute to 1e-5: {what} "
                                                          f"differs by {(seen - own).abs().max():.1e}")
    names = member.trained()
    if not names:
        return
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    wanted = torch.autograd.grad((own * weight).sum(), [member.copies.get_parameter(name) for name in names],
                                 allow_unused=True)
    stored = [shared.tensors[_address(name, member.declared[name])] for name in names]
    got = torch.autograd.grad((y * weight).sum(), stored, allow_unused=True)
    for name, mine, theirs in zip(names, wanted, got, strict=True):
        _check_gradient(f"{name} of {what}", mine, theirs, shared.indices(name, member.declared[name]))


def _check_gradient(what: str, own: Tensor | None, shared: Tensor | None, indices: Tensor) -> None:
    hold(own is not None and shared is not None, f"every parameter takes part: {what} has no gradient")
    assert own is not None and shared is not None
    flat = shared.flatten()
    hold(torch.equal(flat[indices], own.flatten()), f"gradients through a take equal those of a copy: {what}")
    rest = torch.ones_like(flat, dtype=torch.bool)
    rest[indices] = False
    hold(not flat[rest].any(), f"entries that were not taken get no gradient: {what}")


# -- training ----------------------------------------------------------------------------------------------------------

Touched = dict[str, Tensor]
Optimizer = Callable[[dict[str, Tensor], float], Callable[[Touched], None]]


def _descend(parameters: dict[str, Tensor], lr: float) -> Callable[[Touched], None]:
    """Plain gradient descent: entries without a gradient stay by themselves."""
    optimizer = torch.optim.SGD(list(parameters.values()), lr=lr)

    def step(touched: Touched) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def _adam(parameters: dict[str, Tensor], lr: float) -> Callable[[Touched], None]:
    optimizer = MaskedAdamW(parameters)
    return lambda touched: optimizer.step(lr, touched)


def _check_steps(member: Member, shared: Shared, packed: bool, optimizer: Optimizer, lr: float, steps: int) -> None:
    """Train both; raises where an entry that is not taken moves."""
    names, before = member.trained(), {a: t.detach().clone() for a, t in shared.tensors.items()}
    addresses = {name: _address(name, member.declared[name]) for name in names}
    touched = {addresses[name]: _mask(shared, name, member.declared[name]) for name in names}
    whole = {name: torch.ones_like(member.copies.get_parameter(name), dtype=torch.bool) for name in names}
    ours = optimizer({addresses[name]: shared.tensors[addresses[name]] for name in names}, lr)
    theirs = optimizer({name: member.copies.get_parameter(name) for name in names}, lr)
    for _ in range(steps):
        member.output(shared, packed).square().mean().backward()                      # type: ignore[no-untyped-call]
        run(member.copies, member.inputs).square().mean().backward()                  # type: ignore[no-untyped-call]
        ours(touched)
        theirs(whole)
    for address, tensor in shared.tensors.items():
        outside = ~touched[address] if address in touched else torch.zeros_like(tensor, dtype=torch.bool)
        hold(torch.equal(tensor.detach()[outside], before[address][outside]),
             f"a step leaves alone what it does not take: {address} of {member.what} moved")


def _check_weight(member: Member, shared: Shared, name: str, wanted: Param, tolerance: float) -> None:
    with torch.no_grad():
        ours, theirs = shared.take(name, wanted), member.copies.get_parameter(name)
        error = (ours - theirs).abs().max().item() if ours.numel() else 0.0
        scale = max(1.0, theirs.abs().max().item()) if ours.numel() else 1.0
    hold(error <= tolerance * scale, f"after training the taken weights are those of a module trained alone, to "
                                     f"{tolerance:g}: {name} of {member.what} differs by {error:.1e}")


def _mask(shared: Shared, name: str, wanted: Param) -> Tensor:
    mask = torch.zeros_like(shared.tensors[_address(name, wanted)], dtype=torch.bool)
    mask.view(-1)[shared.indices(name, wanted)] = True
    return mask
