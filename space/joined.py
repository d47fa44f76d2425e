"""Blocks whose norms stand elsewhere than before the operator, or whose sublayers meet the stream in another way than by
a plain sum.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .macros.base import Macro
from .macros.running import as_sequence, initial_state, step_part, without_attention

if TYPE_CHECKING:
    from .plan import Block

__all__ = ["JoinedBlock", "JoinedSublayer", "built_block"]


class JoinedSublayer(nn.Module):
    """`join(x, op(x))` with norms before the operator, after it, or after the join, as `placement` says.

    hides: as in `Sublayer`, the keys and values that layers hand on do not reach the operator.
    """

    shares = True

    def __init__(self, norm: nn.Module, op: nn.Module, join: nn.Module, spatial: bool = False, placement: str = "pre",
                 out_norm: nn.Module | None = None, input_scale: float = 1.0, join_reads: bool = False, hides: bool = False):
        super().__init__()
        self.norm, self.op, self.out_norm, self.join = norm, op, out_norm, join
        self.spatial, self.placement, self.input_scale = spatial, placement, input_scale
        self.join_reads, self.hides = join_reads, hides

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        y_BTD = as_sequence(self.op, self.enter(x_BTD, shared), self.spatial,
                            without_attention(shared) if self.hides else shared)
        return self.leave(x_BTD, y_BTD, shared)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        return initial_state(self.op, batch, dtype, device)

    def step(self, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        """With the operator's decode state; norms and joins work on each token alone."""
        y_BTD, state = step_part(self.op, self.enter(x_BTD, shared), state, self.spatial,
                                 without_attention(shared) if self.hides else shared)
        return self.leave(x_BTD, y_BTD, shared), state

    def enter(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        """What the operator reads."""
        if self.placement == "pre" or self.placement == "peri":
            x_BTD = as_sequence(self.norm, x_BTD, True, shared)
        return x_BTD if self.input_scale == 1.0 else self.input_scale * x_BTD

    def leave(self, x_BTD: Tensor, y_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        """The stream after the operator gave `y`."""
        if self.placement == "out":
            y_BTD = as_sequence(self.norm, y_BTD, True, shared)
        if self.out_norm is not None:
            y_BTD = as_sequence(self.out_norm, y_BTD, True, shared)
        x_BTD = self.join(x_BTD, y_BTD, shared) if self.join_reads else self.join(x_BTD, y_BTD)
        return as_sequence(self.norm, x_BTD, True, shared) if self.placement == "post" else x_BTD


class JoinedBlock(nn.Module):
    """The sublayers of one layer; those that are not there are None."""

    shares = True

    def __init__(self, mixer: nn.Module | None = None, channel: nn.Module | None = None):
        super().__init__()
        self.mixer, self.channel = mixer, channel

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        if self.mixer is not None:
            x_BTD = as_sequence(self.mixer, x_BTD, True, shared)
        if self.channel is not None:
            x_BTD = as_sequence(self.channel, x_BTD, True, shared)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        state = {}
        if self.mixer is not None:
            state["mixer"] = initial_state(self.mixer, batch, dtype, device)
        if self.channel is not None:
            state["channel"] = initial_state(self.channel, batch, dtype, device)
        return state

    def step(self, x_BTD: Tensor, state: dict[str, Any],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens and the state after them."""
        after = {}
        if self.mixer is not None:
            x_BTD, after["mixer"] = step_part(self.mixer, x_BTD, state["mixer"], True, shared)
        if self.channel is not None:
            x_BTD, after["channel"] = step_part(self.channel, x_BTD, state["channel"], True, shared)
        return x_BTD, after


def built_block(block: Block, width: int) -> nn.Module:
    """The module of a block that is not plain."""
    made = {}
    for name, op in block.sublayers():
        out_norm = block.norm.build(width) if block.placement == "peri" else None
        made[name] = JoinedSublayer(block.norm.build(width), op.build(width), block.join.build(width), op.spatial,
                                    block.placement, out_norm, float(block.input_scale),
                                    bool(getattr(block.join, "reads_shared", False)),
                                    name != "mixer" or isinstance(op, Macro))
    return JoinedBlock(**made)
