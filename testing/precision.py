"""Low precision: what a module gives in fp16 and bf16 against what it gives in fp32.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..space.operator import Operator
from .modules import built, example_inputs, hold, run

__all__ = ["check_precision"]

DTYPES = (torch.float16, torch.bfloat16)
TIMES = 4.0


@torch.no_grad()
def check_precision(config: Operator, width: int, length: int = 100) -> None:
    """A module in fp16 or bf16 stays finite and close to itself in fp32.

    The tolerance is measured, not set by hand: the error that follows from rounding weights and inputs to the type and
    computing in fp32 is what nobody can avoid; a module in low precision may be off by four times as much, plus four
    roundings of its largest output. An operator that `chooses` is held to it for half of its tokens, since a rounding may
    turn a choice.
    """
    exact, inputs = built(config, width).eval(), example_inputs(config, width, length=(10, 10) if config.spatial else length)
    wanted = run(exact, inputs)
    for dtype in DTYPES:
        low = _cast(inputs, dtype)
        got = run(built(config, width).eval().to(dtype), low)
        hold(got.dtype == dtype, f"outputs have the type of the weights: {config} at width {width} gives {got.dtype} for "
                                 f"{dtype}")
        hold(bool(got.isfinite().all()), f"outputs in {dtype} are finite: those of {config} at width {width} are not")
        rounded = run(_rounded(config, width, dtype), _cast(low, torch.float32))
        allowed = TIMES * (_error(config, rounded, wanted) + torch.finfo(dtype).eps * wanted.abs().max().item())
        error = _error(config, got.float(), wanted)
        hold(error <= allowed, f"outputs in {dtype} are those in fp32, to {TIMES:g} times the error of rounding weights and "
                               f"inputs: {config} at width {width} is off by {error:.1e}, and {allowed:.1e} is allowed; "
                               "accumulate in fp32")


def _rounded(config: Operator, width: int, dtype: torch.dtype) -> nn.Module:
    return built(config, width).eval().to(dtype).to(torch.float32)


def _error(config: Operator, ours: Tensor, wanted: Tensor) -> float:
    """The largest error of any token, or of the better half where choices may turn."""
    each = (ours - wanted).abs().flatten(0, -2).amax(-1)
    return each.median().item() if config.chooses else each.max().item()


def _cast(part: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in another type; everything else as it is."""
    if isinstance(part, Tensor):
        return part.to(dtype) if part.is_floating_point() else part
    if isinstance(part, dict):
        return {name: _cast(value, dtype) for name, value in part.items()}
    return tuple(_cast(each, dtype) for each in part) if isinstance(part, tuple) else part
