"""Declared multiply-adds and state sizes against what torch counts while the module runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..space.operator import Length, Operator, tokens_of
from .behaviour import LENGTHS
from .modules import built, example_inputs, hold, run, run_step, streams

__all__ = ["check_costs", "check_state", "count_macs"]


@torch.no_grad()
def check_state(config: Operator, width: int) -> None:
    """`state_numel` is what one sequence's state holds after a number of tokens; a state declared constant has one size."""
    module: Any = built(config, width)
    sizes = set()
    for length in (0, *LENGTHS):
        state = module.init_state(1)
        if length:
            inputs = example_inputs(config, width, batch=1, length=length)
            _, state = run_step(module, inputs, inputs[0], state)
        held = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
        declared = config.state_numel(width, length)
        sizes.add(held)
        hold(held == declared, f"state_numel is the true size of the state: {config} at width {width} declares "
                               f"{declared} after {length} tokens and holds {held}")
    hold(config.state_growth != "constant" or len(sizes) == 1,
         f"a constant state has one size: that of {config} at width {width} holds {sorted(sizes)} numbers as tokens come")


@torch.no_grad()
def check_costs(config: Operator, width: int, length: int = 100) -> None:
    """Declared multiply-adds against torch's own counter, which here also counts transforms and triangular solves.

    The next token: equal to 2 %, but element-wise recurrences, which are not counted, may add up to four multiply-adds
    per number of the state. A whole sequence: at most what is executed, and at least 60 % of it or of one token after
    the other, whichever is less, since masked pairs are executed and not declared; where tokens look both ways through a
    window, at least 60 % of it while the window holds all. A spatial operator is counted on a grid as well.
    """
    window = None if config.spatial else getattr(config, "window", None)
    for size in (length, (11, 9) if config.spatial else None, window):
        if size is not None:
            _check_pass(config, width, size)
    if not streams(config, width):
        return
    module: Any = built(config, width)
    inputs = example_inputs(config, width, batch=1, length=length)
    _, state = run_step(module, inputs, inputs[0], module.init_state(1))
    executed = count_macs(lambda x_B1D: run_step(module, inputs, x_B1D, state), inputs[0][:, :1])
    declared, elementwise = config.decode_macs(width, length), 4 * config.state_numel(width, length)
    hold(0.98 * executed <= declared <= 1.02 * executed + elementwise,
         f"decode_macs() agrees with torch's counter: {config} at width {width} declares {declared:.0f} after "
         f"{length} tokens and torch counts {executed:.0f}")


def _check_pass(config: Operator, width: int, length: Length) -> None:
    module = built(config, width)
    inputs = example_inputs(config, width, batch=1, length=length)
    executed = count_macs(lambda x_BTD: run(module, inputs, x_BTD), inputs[0])
    declared, tokens = config.macs(width, length), tokens_of(length)      # type: ignore[arg-type]
    elementwise, least = 4 * config.state_numel(width, tokens) * tokens, executed
    if config.causal:
        least = min(executed, sum(config.decode_macs(width, seen) for seen in range(tokens)))
    elif not config.spatial and tokens > (getattr(config, "window", None) or tokens):
        least = 0.0
    hold(0.6 * least <= declared <= 1.02 * executed + elementwise,
         f"macs() agrees with torch's counter: {config} at width {width} declares {declared:.0f} for {length} tokens, "
         f"torch counts {executed:.0f}, and at least 60 % of {least:.0f} are expected")


def count_macs(call: Callable[[Tensor], Any], x_BTD: Tensor) -> float:
    """Multiply-adds that torch's counter sees, plus triangular solves, weighted sums of rows of a table, and transforms at
    2.5 n log2 n operations per real transform of n numbers. Fused attention counts as the products it stands for."""
    aten = torch.ops.aten
    also = {aten._fft_r2c: lambda x, dim, *_, **__: _transform(x, dim), aten._fft_c2r: _inverse_transform,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten.linalg_solve_triangular: lambda a, b, *_, **__: math.prod(b) * a[-1],
            aten._embedding_bag: _weighted_rows, aten._embedding_bag_forward_only: _weighted_rows}
    with FlopCounterMode(display=False, custom_mapping=also) as counter:
        call(x_BTD)
    return float(counter.get_total_flops() / 2)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores, and the values they weigh."""
    batch, heads, length, head_dim = query
    return 2 * batch * heads * length * key[-2] * (head_dim + value[-1])


def _transform(shape: Sequence[int], dim: Sequence[int]) -> float:
    return 2.5 * math.prod(shape) * math.log2(math.prod(shape[d] for d in dim))


def _inverse_transform(x: Sequence[int], dim: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> float:
    return _transform(out_shape, dim)


def _weighted_rows(table: Sequence[int], indices: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(indices) * table[-1]
