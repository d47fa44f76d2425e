"""A network with every number fixed: embedding, layers, recursion, head. What an `Architecture` resolves to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .macros.base import Macro, Part
from .operator import Length, Operator, Source
from .operators.identity import Identity
from .operators.rmsnorm import RMSNorm

if TYPE_CHECKING:
    from torch import nn

    from .graph import Draft

__all__ = ["Block", "Loop", "Once", "Plan"]


@dataclass(frozen=True)
class Block(Macro):
    """A pre-norm residual layer: `x + mixer(norm(x))`, then `x + channel(norm(x))`.

    `Identity()` as mixer or channel removes that sublayer together with its norm and residual.
    """

    mixer: Any = field(default_factory=Identity)
    channel: Any = field(default_factory=Identity)
    norm: Any = field(default_factory=RMSNorm)
    holds: ClassVar[tuple[str, ...]] = ("mixer", "channel", "norm")
    vanishes: ClassVar[bool] = True
    source: ClassVar[Source] = Source("On Layer Normalization in the Transformer Architecture", 2020)

    def sublayers(self) -> list[tuple[str, Operator]]:
        """The sublayers that exist: ("mixer", operator) and ("channel", operator)."""
        pairs = (("mixer", self.mixer), ("channel", self.channel))
        return [(name, op) for name, op in pairs if not isinstance(op, Identity)]

    def parts(self, width: int, length: Length) -> list[Part]:
        """The norm and the operator of each sublayer."""
        found = []
        for name, op in self.sublayers():
            found.append(Part(f"{name}.norm", self.norm, ("norm",), width, length))
            found.append(Part(f"{name}.op", op, (name,), width, length))
        return found

    def build(self, width: int) -> nn.Module:
        from .model import BlockModule, Sublayer

        return BlockModule(**{name: Sublayer(self.norm.build(width), op.build(width), op.spatial,
                                             hides=name != "mixer" or isinstance(op, Macro))
                              for name, op in self.sublayers()})

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        for name, op in self.sublayers():
            stream = draft.sublayer(f"{place}.{name}", name, self.norm, op, stream, width)
        return stream


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

    @property
    def is_plain(self) -> bool:
        return True


@dataclass(frozen=True)
class Loop:
    """The whole body runs `times` times with the same weights.

    With `lora_rank` every matrix W becomes `W + B[t] A[t]` in iteration t, B zero at the start. K/V caches and states
    are kept per layer and iteration. Relaxed Recursive Transformers (Bae et al., 2024).
    """

    times: Any = 2
    lora_rank: Any = 0
    proof: ClassVar[str] = "tests/space/test_depth.py -k recursive_model"
    source: ClassVar[Source] = Source("Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
                                      2024, systems=("S014",))

    @property
    def is_plain(self) -> bool:
        """Whether it changes nothing."""
        return bool(self.times == 1 and self.lora_rank == 0)

    def check(self, where: str) -> None:
        if self.times < 1:
            raise ValueError(f"times must be at least 1 at {where}: got {self.times}; use Once() for no recursion")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative at {where}: got {self.lora_rank}; use 0 for none")


@dataclass(frozen=True)
class Plan:
    """Every number of one network. `layers` are the items of the body in order, blocks and macros; empty blocks are gone."""

    embed: Operator
    width: int
    layers: tuple[Any, ...]
    recursion: Once | Loop
    head: Operator
    norm: Operator

    @property
    def out_width(self) -> int:
        """The width of the stream that reaches the head."""
        return flow(self.layers, self.width, 1)[0]


def flow(items: tuple[Any, ...], width: int, length: Length) -> tuple[int, Length]:
    """Width and length of a stream after `items`."""
    for item in items:
        width, length = item.out(width, length)
    return width, length
