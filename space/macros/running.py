"""How a part of a macro is run: on a grid or on a sequence, with a state or without, with what parts share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("kv", "first_value", "first_seen", "layers", "chosen")     # what attention layers of one stream hand on
__all__ = ["as_sequence", "initial_state", "step_part", "without_attention"]


def as_sequence(part: nn.Module, x: Tensor, spatial: bool, shared: dict[str, Any] | None = None) -> Tensor:
    """`part(x)`; a grid [B, H, W, D] reaches a part that is not spatial as a sequence [B, H * W, D]."""
    given = (x.flatten(1, 2) if x.ndim == 4 and not spatial else x,)
    y: Tensor = part(*given, shared) if shared is not None and getattr(part, "shares", False) else part(*given)
    return y.view(*x.shape[:3], y.shape[-1]) if x.ndim == 4 and not spatial else y


def step_part(part: Any, x_BTD: Tensor, state: Any, spatial: bool,
              shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
    """The next tokens through a part; one without a state works on each token alone."""
    if state is None or not hasattr(part, "step"):
        return as_sequence(part, x_BTD, spatial, shared), state
    if shared is not None and getattr(part, "shares", False):
        return part.step(x_BTD, state, shared)                                       # type: ignore[no-any-return]
    return part.step(x_BTD, state)                                                   # type: ignore[no-any-return]


def initial_state(part: Any, batch: int, dtype: torch.dtype, device: Any) -> Any:
    """The state of a part before the first token; an empty one for a part that keeps none."""
    return part.init_state(batch, dtype=dtype, device=device) if hasattr(part, "init_state") else {}


def without_attention(shared: dict[str, Any] | None) -> dict[str, Any] | None:
    """What an outer stream shares, without the keys and values of its layers; nothing where nothing is shared."""
    return None if shared is None else {key: held for key, held in shared.items() if key not in ATTENTION}
