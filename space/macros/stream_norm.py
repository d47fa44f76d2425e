"""A norm on the stream itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..operator import Length, Source
from ..operators.rmsnorm import RMSNorm
from .base import Macro, Part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["NormedStream", "StreamNorm"]


class NormedStream(nn.Module):
    """`norm(x)`, in the stream."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD


@dataclass(frozen=True)
class StreamNorm(Macro):
    """A norm between parts of a body: after the embedding for Peri-LN (Kim et al., 2025), between layers elsewhere: behind
    every block it makes residual sums post-norm (Squeezeformer, Kim et al., 2022).

    `body=(StreamNorm(), repeat(Block(..., placement="peri"), 12))` with the space's norm before the head is Peri-LN.
    """

    norm: Any = field(default_factory=RMSNorm)
    holds: ClassVar[tuple[str, ...]] = ("norm",)
    proof: ClassVar[str] = "tests/space/test_residuals.py -k norm_in_the_stream"
    source: ClassVar[Source] = Source("Peri-LN: Revisiting Layer Normalization in the Transformer Architecture", 2025,
                                      systems=("S072",))

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(self.norm.causal)

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return bool(self.norm.streaming)

    def parts(self, width: int, length: Length) -> list[Part]:
        return [Part("norm", self.norm, ("norm",), width, length)]

    def build(self, width: int) -> nn.Module:
        return NormedStream(self.norm.build(width))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        return draft.op(self.norm, f"{place}.norm", "norm", stream, width)
