"""A network with every number fixed: embedding, layers, recursion, head. What an `Architecture` resolves to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .operator import Operator, Source
from .operators.identity import Identity
from .operators.rmsnorm import RMSNorm

__all__ = ["Block", "Loop", "Once", "Plan"]


@dataclass(frozen=True)
class Block:
    """A pre-norm residual layer: `x + mixer(norm(x))`, then `x + channel(norm(x))`.

    `Identity()` as mixer or channel removes that sublayer together with its norm and residual.
    """

    mixer: Any = field(default_factory=Identity)
    channel: Any = field(default_factory=Identity)
    norm: Any = field(default_factory=RMSNorm)

    @property
    def is_empty(self) -> bool:
        return isinstance(self.mixer, Identity) and isinstance(self.channel, Identity)

    def sublayers(self) -> list[tuple[str, Operator]]:
        """The sublayers that exist: ("mixer", operator) and ("channel", operator)."""
        pairs = (("mixer", self.mixer), ("channel", self.channel))
        return [(name, op) for name, op in pairs if not isinstance(op, Identity)]


@dataclass(frozen=True)
class Once:
    """The body runs once."""

    source: ClassVar[Source] = Source("(no recursion)", 2026)

    @property
    def times(self) -> int:
        return 1

    @property
    def lora_rank(self) -> int:
        return 0


@dataclass(frozen=True)
class Loop:
    """The whole body runs `times` times with the same weights.

    With `lora_rank` every matrix W becomes `W + B[t] A[t]` in iteration t, B zero at the start. K/V caches and states
    are kept per layer and iteration. Relaxed Recursive Transformers (Bae et al., 2024).
    """

    times: Any = 2
    lora_rank: Any = 0
    source: ClassVar[Source] = Source("Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
                                      2024, options=("S014",))

    def check(self, where: str) -> None:
        if self.times < 1:
            raise ValueError(f"times must be at least 1 at {where}: got {self.times}; use Once() for no recursion")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative at {where}: got {self.lora_rank}; use 0 for none")


@dataclass(frozen=True)
class Plan:
    """Every number of one network. `layers` are the body in order; empty blocks are already gone."""

    embed: Operator
    width: int
    layers: tuple[Block, ...]
    recursion: Once | Loop
    head: Operator
    norm: Operator
