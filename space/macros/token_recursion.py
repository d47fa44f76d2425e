"""Recursions in which a pass works on some of the tokens, or on groups of them. The modules are in `token_layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from .recursion import Passes, Recursion
from .routing import count_of
from .token_layers import RoutedRounds, SlicedRounds, ThinkingRounds, TokenRounds

if TYPE_CHECKING:
    from torch import nn

__all__ = ["InnerThinking", "RoutedLoop", "SlicedLoop", "TokenLoop"]


@dataclass(frozen=True)
class RoutedLoop(Recursion):
    """Mixture-of-Recursions by expert choice (Bae et al., 2025): each pass takes fewer tokens.

    capacity: the share of all tokens that takes part in each pass, never growing. A pass chooses among the tokens of the
    pass before by a linear score; those it takes see each other alone, in their order and at their places among
    themselves, so keys and values are those of the pass. adds: "output", the stream plus `scale * sigmoid(score)` times
    what the layers give (as the published code does, layers with their own residual included); "change", that weight
    times what they add; "whole", what they give as it is, so that the scores have no gradient. With "whole" and a capacity
    of ones it is the plain loop. The choice looks at the whole sequence:
    it is not causal and does not stream; `TokenLoop` is the causal form.
    """

    capacity: Any = (1.0, 2 / 3, 1 / 3)
    scale: Any = 0.1
    adds: Any = "output"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_depth.py -k RoutedLoop"
    source: ClassVar[Source] = Source("Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level "
                                      "Computation", 2025, systems=("S020",))

    @property
    def times(self) -> int:                                                           # type: ignore[override]
        return len(self.capacity)

    def check(self, where: str) -> None:
        shares = self.capacity
        if not isinstance(shares, tuple) or not shares or any(not 0 < c <= 1 for c in shares):
            raise ValueError(f"capacity is one share of the tokens, above 0 and up to 1, per pass at {where}: got "
                             f"{shares!r}; use (1.0, 0.5)")
        if list(shares) != sorted(shares, reverse=True):
            raise ValueError(f"a pass takes no more tokens than the one before at {where}: got capacity {shares}; order them")
        if self.adds not in ("output", "change", "whole"):
            raise ValueError(f"adds is 'output', 'change' or 'whole' at {where}: got {self.adds!r}")

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        return {"pass_router": param(axis("iteration", self.times), axis("width", width))}

    def macs(self, width: int, length: Length) -> float:
        tokens = tokens_of(length)
        return float(width * (tokens + sum(count_of(c, tokens) for c in self.capacity[:-1])))

    def macs_per_token(self, width: int) -> float:
        return width * (1 + sum(self.capacity[:-1]))                                  # type: ignore[no-any-return]

    def passes(self, index: int, length: Length) -> Passes:
        return tuple((count_of(c, tokens_of(length)), c) for c in self.capacity)

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return RoutedRounds(layers, width, self.capacity, self.scale, self.adds)


@dataclass(frozen=True)
class TokenLoop(Recursion):
    """Mixture-of-Recursions by token choice (Bae et al., 2025): every token chooses its number of passes at the start.

    The most likely of a softmax over passes; that probability weighs what each pass adds. A pass sees the tokens that have
    not finished, at their places among themselves. Causal, and decodes with a state per sequence, pass and layer. expected:
    the share of tokens that costs take to go through each pass; what really ran is for `bp.measured_macs` to say.
    """

    times: Any = 3
    expected: Any = None
    proof: ClassVar[str] = "tests/space/test_depth.py -k TokenLoop"
    source: ClassVar[Source] = Source(RoutedLoop.source.paper, 2025, options=("S020",))

    def check(self, where: str) -> None:
        super().check(where)
        if self.expected is not None and len(self.expected) != self.times:
            raise ValueError(f"expected has a share for each of the passes at {where}: got {len(self.expected)} for "
                             f"{self.times}")

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        return {"router.weight": param(axis("iteration", self.times), axis("width", width))}

    def macs_per_token(self, width: int) -> float:
        return float(self.times * width)

    def passes(self, index: int, length: Length) -> Passes:
        shares = self.expected or [1 - t / self.times for t in range(self.times)]
        return tuple((count_of(share, tokens_of(length)), share) for share in shares)

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return TokenRounds(layers, width, self.times, ahead)


@dataclass(frozen=True)
class InnerThinking(Recursion):
    """Inner Thinking Transformer (Chen et al., 2025): all tokens take the first step, the highest-scored ones every later.

    What step t adds to the stream is multiplied by a learned vector, its step encoding, which starts as ones, and after
    the first step by the sigmoid of the token's score; the steps accumulate (read as what layers add, so that their own
    residual counts once). capacity: the share of tokens of the later
    steps. The choice looks at the whole sequence: it is not causal and does not stream.
    """

    times: Any = 3
    capacity: Any = 0.5
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_depth.py -k InnerThinking"
    source: ClassVar[Source] = Source("Inner Thinking Transformer: Leveraging Dynamic Depth Scaling to Foster Adaptive "
                                      "Internal Thinking", 2025, systems=("S054",))

    def check(self, where: str) -> None:
        super().check(where)
        if not 0 < self.capacity <= 1:
            raise ValueError(f"capacity is a share above 0 and up to 1 at {where}: got {self.capacity}")

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        d = axis("width", width)
        return {"think_router": param(axis("later", self.times - 1), d),
                "think_encoding": param(axis("iteration", self.times), d, init="ones")}

    def macs_per_token(self, width: int) -> float:
        return float((self.times - 1) * width)

    def passes(self, index: int, length: Length) -> Passes:
        later = (count_of(self.capacity, tokens_of(length)), self.capacity)
        return ((length, 1.0), *[later] * (self.times - 1))

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return ThinkingRounds(layers, width, self.times, self.capacity)


@dataclass(frozen=True)
class SlicedLoop(Recursion):
    """Sliced Recursive Transformer (Shen et al., 2021): a pass works on groups of tokens, a projection stands between.

    groups: of each pass; odd passes take every G-th token where even ones take neighbours (the published code draws the
    permutation anew each time; here it is fixed). ratio: hidden size of the projections over the width. A learned pair
    weighs the stream and what each layer adds. Groups depend on the length: it is not causal and does not stream.
    """

    groups: Any = (8, 2)
    ratio: Any = 1
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_depth.py -k SlicedLoop"
    source: ClassVar[Source] = Source("Sliced Recursive Transformer", 2021, systems=("S006",))

    @property
    def times(self) -> int:                                                           # type: ignore[override]
        return len(self.groups)

    def check(self, where: str) -> None:
        if not isinstance(self.groups, tuple) or not self.groups or any(g < 1 for g in self.groups):
            raise ValueError(f"groups is a number of at least 1 per pass at {where}: got {self.groups!r}; use (8, 2)")
        if self.ratio <= 0:
            raise ValueError(f"ratio must be positive at {where}: got {self.ratio}")

    def hidden(self, width: int) -> int:
        return int(max(1, round(self.ratio * width)))

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        d, h, pair = axis("width", width), axis("between_hidden", self.hidden(width)), axis("pair", 2)
        found = {"coefficients": param(axis("layers", layers), pair, init="ones")}
        for t in range(self.times):
            found |= {f"between.{t}.coefficients": param(pair, init="ones"),
                      f"between.{t}.norm.weight": param(d, share="own", init="ones"),
                      f"between.{t}.norm.bias": param(d, share="own", init="zeros"),
                      f"between.{t}.up.weight": param(h, d), f"between.{t}.up.bias": param(h, init="zeros"),
                      f"between.{t}.down.weight": param(d, h), f"between.{t}.down.bias": param(d, init="zeros")}
        return found

    def macs_per_token(self, width: int) -> float:
        return float(2 * self.times * width * self.hidden(width))

    def passes(self, index: int, length: Length) -> Passes:
        tokens, found = tokens_of(length), []
        for groups in self.groups:
            size, larger = divmod(tokens, groups)
            found += [(size + 1, 1.0)] * larger + [(size, 1.0)] * (groups - larger)
        return tuple(entry for entry in found if entry[0])

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return SlicedRounds(layers, self.groups, width, self.hidden(width))
