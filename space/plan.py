"""A network with every number fixed: embedding, layers, recursion, head. What an `Architecture` resolves to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .macros.base import Macro, Part
from .operator import Length, Operator, Source
from .operators.add import Add
from .operators.identity import Identity
from .operators.rmsnorm import RMSNorm

if TYPE_CHECKING:
    from torch import nn

    from .graph import Draft

__all__ = ["PLACEMENTS", "Block", "Loop", "Once", "Plan", "check_input_scale", "check_placement"]


PLACEMENTS = ("pre", "post", "peri", "out")


@dataclass(frozen=True)
class Block(Macro):
    """A residual layer: a mixer, then a channel mixer, each with a norm and a join to the stream.

    `Identity()` as mixer or channel removes that sublayer together with its norm and join. placement of the norm N around
    an operator F, with `Add()` as the join:

        pre     x + F(N(x))          On Layer Normalization in the Transformer Architecture (Xiong et al., 2020)
        post    N(x + F(x))          Attention Is All You Need (Vaswani et al., 2017); DeepNet with `Add(skip=alpha)`
        peri    x + N'(F(N(x)))      Peri-LN (Kim et al., 2025); the sublayers of CogView's Sandwich-LN (Ding et al., 2021)
        out     x + N(F(x))          Swin Transformer V2's res-post-norm (Liu et al., 2022)

    join: how stream and output meet: `Add`, `LayerScale`, `GatedResidual`, `AugmentedShortcut` and others of kind "join".
    input_scale: a number that what F reads is multiplied with, after the norm (The Curse of Depth, Sun et al., 2025).
    """

    mixer: Any = field(default_factory=Identity)
    channel: Any = field(default_factory=Identity)
    norm: Any = field(default_factory=RMSNorm)
    placement: Any = "pre"
    join: Any = field(default_factory=Add)
    input_scale: Any = 1.0
    holds: ClassVar[tuple[str, ...]] = ("mixer", "channel", "norm", "join")
    vanishes: ClassVar[bool] = True
    source: ClassVar[Source] = Source("On Layer Normalization in the Transformer Architecture", 2020, options=("S072",))

    @property
    def is_plain(self) -> bool:
        """Whether every sublayer is `x + op(norm(x))`, with a norm that reads nothing else."""
        return (self.placement == "pre" and self.join == Add() and self.input_scale == 1
                and not getattr(self.norm, "reads_shared", False))

    def sublayers(self) -> list[tuple[str, Operator]]:
        """The sublayers that exist: ("mixer", operator) and ("channel", operator)."""
        pairs = (("mixer", self.mixer), ("channel", self.channel))
        return [(name, op) for name, op in pairs if not isinstance(op, Identity)]

    def options(self) -> dict[str, Any]:
        """Placement, join and input scale where they are not the usual."""
        usual = (("placement", "pre"), ("join", Add()), ("input_scale", 1.0))
        return {name: getattr(self, name) for name, default in usual if getattr(self, name) != default}

    def around(self) -> list[tuple[str, Operator, str]]:
        """(name, operator, field) of what stands around the operator of every sublayer, in the order it runs."""
        before = [("norm", self.norm, "norm")] if self.placement in ("pre", "peri") else []
        after = [("out_norm", self.norm, "norm")] if self.placement == "peri" else []
        after += [("norm", self.norm, "norm")] if self.placement == "out" else []
        after += [("join", self.join, "join")] if self.join != Add() else []
        after += [("norm", self.norm, "norm")] if self.placement == "post" else []
        return [*before, *after]

    def parts(self, width: int, length: Length) -> list[Part]:
        """The norms, the operator and the join of each sublayer."""
        found = []
        for name, op in self.sublayers():
            around = [Part(f"{name}.{part}", item, (held,), width, length) for part, item, held in self.around()]
            first = self.placement in ("pre", "peri")
            found += [*around[:first], Part(f"{name}.op", op, (name,), width, length), *around[first:]]
        return found

    def build(self, width: int) -> nn.Module:
        from .joined import built_block
        from .model import BlockModule, Sublayer

        if not self.is_plain:
            return built_block(self, width)
        return BlockModule(**{name: Sublayer(self.norm.build(width), op.build(width), op.spatial,
                                             hides=name != "mixer" or isinstance(op, Macro))
                              for name, op in self.sublayers()})

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        for name, op in self.sublayers():
            if self.is_plain:
                stream = draft.sublayer(f"{place}.{name}", name, self.norm, op, stream, width)
            else:
                stream = draft.joined(f"{place}.{name}", name, self, op, stream, width)
        return stream


def check_placement(placement: Any, where: str) -> None:
    """Raise ValueError unless it names a place of the norm."""
    if placement not in PLACEMENTS:
        raise ValueError(f"placement is one of {', '.join(PLACEMENTS)} at {where}: got {placement!r}")


def check_input_scale(scale: Any, where: str) -> None:
    """Raise ValueError unless it is a positive number."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"input_scale is a positive number at {where}: got {scale!r}; 1.0 leaves the input as it is")


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
