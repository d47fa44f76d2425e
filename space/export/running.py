# mypy: ignore-errors
# The text below goes into exported files, where comments for a type checker have no place.
"""How an exported file runs a part where it does not hold for all parts that they take grids, share, or have a state.

They stand for the functions of `space/macros/running.py`; see `inline`.

Legend: B batch, T tokens, H rows, W columns, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["on_grid", "on_grid_sharing", "sharing", "state_of", "stepped", "stepped_sharing"]


def on_grid(part: nn.Module, x_BHWD: Tensor, spatial: bool) -> Tensor:
    """`part(x)`; a part that is not spatial gets the grid as a sequence, [B, H * W, D]."""
    if spatial:
        return part(x_BHWD)
    return part(x_BHWD.flatten(1, 2)).unflatten(1, x_BHWD.shape[1:3])


def sharing(part: nn.Module, x: Tensor, shared: dict[str, Any] | None) -> Tensor:
    """`part(x)`, with what layers hand on if it takes that."""
    return part(x, shared) if getattr(part, "shares", False) else part(x)


def on_grid_sharing(part: nn.Module, x_BHWD: Tensor, spatial: bool, shared: dict[str, Any] | None) -> Tensor:
    """`part(x)`, with what layers hand on; a part that is not spatial gets the grid as a sequence, [B, H * W, D]."""
    if spatial:
        return sharing(part, x_BHWD, shared)
    return sharing(part, x_BHWD.flatten(1, 2), shared).unflatten(1, x_BHWD.shape[1:3])


def stepped(part: nn.Module, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The next tokens through a part; one without a state works on each token alone."""
    return part.step(x_BTD, state) if hasattr(part, "step") else (part(x_BTD), state)


def stepped_sharing(part: nn.Module, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None) -> tuple[Tensor, Any]:
    """The next tokens through a part, with what layers hand on; one without a state works on each token alone."""
    if not hasattr(part, "step"):
        return sharing(part, x_BTD, shared), state
    return part.step(x_BTD, state, shared) if getattr(part, "shares", False) else part.step(x_BTD, state)


def state_of(part: nn.Module, batch: int, dtype: torch.dtype, device: Any) -> Any:
    """The state of a part before the first token; an empty one for a part that keeps none."""
    return part.init_state(batch, dtype=dtype, device=device) if hasattr(part, "init_state") else {}
