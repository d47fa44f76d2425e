"""Parts of one answer: sequences in a batch give what each gives alone, and so do the pieces of a sequence.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..space.operator import Operator
from .modules import built, example_inputs, hold, run, run_step

__all__ = ["check_batch", "check_prefill"]

RAGGED = (23, 9, 1)
PIECES = ((1, 1), (5, 18), (33, 30), (63, 1))


@torch.no_grad()
def check_batch(config: Operator, width: int, tolerance: float = 1e-10) -> None:
    """A sequence's outputs depend on no other sequence of the batch, nor, where the operator is causal, on what pads it.

    In float64 and evaluation mode, relative to the largest output. Sequences of an operator that is not causal have one
    length, since it would see the padding.
    """
    module = built(config, width, dtype=torch.float64).eval()
    longest = RAGGED[0]
    inputs = example_inputs(config, width, batch=len(RAGGED), length=(4, 5) if config.spatial else longest,
                            dtype=torch.float64)
    together = run(module, inputs)
    for row, length in enumerate(RAGGED):
        alone = _row(inputs, row)
        if config.causal and not config.spatial:
            joined = alone[1:2] if config.kind == "join" else ()
            alone = (*(part[:, :length] for part in (alone[0], *joined)), *alone[1 + len(joined):])
        y_BTD = run(module, alone)
        seen = together[row:row + 1, :y_BTD.shape[1]]
        error = (seen - y_BTD).abs().max().item() / max(1.0, y_BTD.abs().max().item())
        hold(error <= tolerance, f"a sequence in a batch gives what it gives alone: {config} at width {width} differs by "
                                 f"{error:.1e} for {y_BTD[0, ..., 0].numel()} tokens in a batch of {len(RAGGED)}")


@torch.no_grad()
def check_prefill(config: Operator, width: int, tolerance: float = 1e-9) -> None:
    """A prefill of some tokens and one of the rest leave the outputs and the state that one prefill of all leaves.

    In float64, relative to the largest entry; pieces longer and shorter than one another, without a state to begin with.
    """
    module: Any = built(config, width, dtype=torch.float64)
    for first, second in PIECES:
        inputs = example_inputs(config, width, length=first + second, dtype=torch.float64)
        x_BTD = inputs[0]
        wanted, after_all = run_step(module, inputs, x_BTD, None)
        y_BTD, state = run_step(module, inputs, x_BTD[:, :first], None)
        z_BTD, state = run_step(module, inputs, x_BTD[:, first:], state)
        where = f"{config} at width {width}, {first} tokens and {second}"
        _close(f"outputs of two prefills are those of one: {where}", torch.cat([y_BTD, z_BTD], 1), wanted, tolerance)
        hold(list(state) == list(after_all), f"a state keeps its keys: {where}: {list(after_all)}, then {list(state)}")
        for name, value in after_all.items():
            _close(f"the state after two prefills is that after one: {name!r} of {where}", state[name], value, tolerance)


def _close(what: str, ours: Any, wanted: Any, tolerance: float) -> None:
    if not isinstance(wanted, Tensor):
        hold(ours == wanted, f"{what}: {ours} and {wanted}")
        return
    hold(ours.shape == wanted.shape, f"{what}: shapes {tuple(ours.shape)} and {tuple(wanted.shape)}")
    if wanted.numel():
        error = (ours - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        hold(error <= tolerance, f"{what}: differ by {error:.1e}")


def _row(inputs: tuple[Any, ...], row: int) -> tuple[Any, ...]:
    """One sequence of the batch."""
    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[row:row + 1]
        return {name: cut(value) for name, value in part.items()} if isinstance(part, dict) else part

    return tuple(cut(part) for part in inputs)
