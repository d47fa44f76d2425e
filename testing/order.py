"""Axes that may be permuted: every one that is not declared fixed really leaves the function as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..space.elastic.permuting import AxisGroup, Weight, axis_groups, permute, traits_of
from ..space.operator import Operator
from .modules import built, example_inputs, hold, run

__all__ = ["check_order"]


@torch.no_grad()
def check_order(config: Operator, width: int, tolerance: float = 1e-10) -> None:
    """A random permutation of every axis group leaves outputs alone, and one of the width permutes them along.

    An axis whose entries have a meaning of their own is named in the operator's `fixed`, with the reason.
    """
    inputs = example_inputs(config, width, dtype=torch.float64)
    wanted = run(built(config, width, dtype=torch.float64), inputs)
    groups = _groups(config, width, built(config, width, dtype=torch.float64))
    for number, group in enumerate(groups):
        if not group.kept and not group.is_stream:
            _check(config, width, number, inputs, wanted, tolerance)
    if "width" not in config.fixed:
        _check_width(config, width, inputs, wanted, tolerance)


def _groups(config: Operator, width: int, module: Any) -> list[AxisGroup]:
    declared, traits = config.axes(width), traits_of([config])
    return axis_groups([Weight(name, p.data, declared[name], "operator", traits) for name, p in module.named_parameters()],
                       [(traits, width)])


def _check(config: Operator, width: int, number: int, inputs: tuple[Any, ...], wanted: Tensor, tolerance: float) -> None:
    module = built(config, width, dtype=torch.float64)
    group = _groups(config, width, module)[number]
    permute(group, torch.rand(group.shape, generator=torch.Generator().manual_seed(number)).argsort(-1))
    _same(f"axis {group.name!r} of {config} at width {width} may be permuted" +
          f" within {' and '.join(name for name, _ in group.outer)}" * bool(group.outer), group.name,
          run(module, inputs), wanted, tolerance)


def _check_width(config: Operator, width: int, inputs: tuple[Any, ...], wanted: Tensor, tolerance: float) -> None:
    order = torch.rand(width, generator=torch.Generator().manual_seed(7)).argsort()
    module = built(config, width, dtype=torch.float64)
    for group in _groups(config, width, module):
        if group.is_stream and group.size == width:
            hold(not group.kept, f"the width is permuted in all of an operator: {config} keeps it: {group.kept}")
            permute(group, order)
    if config.kind != "embedding":
        inputs = tuple(_along(part, order) for part in inputs)
    if config.kind != "head":
        wanted = wanted[..., order]
    _same(f"the residual width of {config} may be permuted", "width", run(module, inputs), wanted, tolerance)


def _along(part: Any, order: Tensor) -> Any:
    if isinstance(part, dict):
        return {name: _along(value, order) for name, value in part.items()}
    return part[..., order]


def _same(what: str, name: str, ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    error = (ours - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
    hold(error <= tolerance, f"{what}: outputs moved by {error:.1e}; declare what belongs together under one axis name, "
                             f"or say fixed = {{{name!r}: why}}")
