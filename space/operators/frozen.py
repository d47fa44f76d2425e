"""An operator that stays as it was drawn.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param
from ..operator import Source
from .attention import Attention
from .wrapped import Wrapped

__all__ = ["Frozen", "FrozenOperator"]


class FrozenOperator(nn.Module):
    """`op` with parameters that take no gradient; its inputs do."""

    def __init__(self, op: nn.Module):
        super().__init__()
        self.op: Any = op.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)                                                            # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        return self.op.init_state(batch, dtype=dtype, device=device) if hasattr(self.op, "init_state") else {}

    def step(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next tokens; an operator without a state works on each token alone."""
        if not hasattr(self.op, "step"):
            return self.op(x_BTD), {} if state is None else state
        return self.op.step(x_BTD, state)                                            # type: ignore[no-any-return]


@dataclass(frozen=True)
class Frozen(Wrapped):
    """A random operator that is never trained: SUMA (AlKhamissi et al., 2024), whose encoder is one random block of
    attention, run a few times, below a trained decoder.

    op: a mixer, a channel mixer or a norm, whose numbers may be choices. Its parameters are statistics: they count as no
    parameters, no training moves them, and every network of a supernet has the same. What is below is trained through it.
    The paper's encoder is

        Looped((Block(mixer=Frozen(Attention(heads=...)), norm=Frozen(RMSNorm())),), Loop(2))

    with many narrow heads (512 in the published model, whose attention has no positions), and layers that are trained behind
    it. The embedding below it is trained here.
    """

    op: Any = field(default_factory=Attention)
    proof: ClassVar[str] = "tests/space/operators/test_frozen.py"
    source: ClassVar[Source] = Source("Brain-Like Language Processing via a Shallow Untrained Multihead Attention Network",
                                      2024, systems=("S349",))

    def check(self, width: int, where: str) -> None:
        self.check_inside(width, where, ("mixer", "channel", "norm"))

    def axes(self, width: int) -> dict[str, Param]:
        return {f"op.{name}": replace(declared, statistic=True) for name, declared in self.op.axes(width).items()}

    def build(self, width: int) -> nn.Module:
        return FrozenOperator(self.op.build(width))
