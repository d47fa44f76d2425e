"""How the layers of `Looped` run more than once, beside `Loop`. The modules are in `recursion_layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from .recursion_layers import (
    EncodedRounds,
    HyperRounds,
    NormedRounds,
    RoutedRounds,
    SlicedRounds,
    ThinkingRounds,
    TokenRounds,
    Visits,
)
from .routing import count_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HyperLoop", "InnerThinking", "IterationEncoding", "OwnNorms", "Recursion", "RoutedLoop", "SlicedLoop", "TokenLoop",
           "VisitOrder"]

Passes = tuple[tuple[Length, float], ...]          # (length, share of next tokens) of every pass


class Recursion:
    """A way to run layers more than once with one set of weights.

    causal, streaming: whether it looks at nothing to the right itself, and decodes token by token.
    """

    source: ClassVar[Source]
    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    lora_rank: ClassVar[int] = 0
    is_plain: bool = False
    times: Any

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""
        _check_times(self.times, where)

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        """Parameters beside those of the layers."""
        return {}

    def macs_per_token(self, width: int) -> float:
        """Multiply-adds beside those of the layers."""
        return 0.0

    def macs(self, width: int, length: Length) -> float:
        return self.macs_per_token(width) * tokens_of(length)

    def passes(self, index: int, length: Length) -> Passes:
        """The passes of layer `index` over a stream of `length`."""
        return ((length, 1.0),) * self.times                                          # type: ignore[no-any-return]

    def on(self, indices: list[int]) -> Recursion:
        """The recursion of the layers that are there, by their index among all that were declared."""
        return self

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        """The module that runs these layers."""
        raise TypeError(f"{type(self).__name__} must define build(layers, width)")


@dataclass(frozen=True)
class IterationEncoding(Recursion):
    """FraiLT (Tabak, 2024): a learned vector of the pass is added to what enters it; zero at the start."""

    times: Any = 2
    source: ClassVar[Source] = Source("Freely Long-Thinking Transformer (FraiLT)", 2024, systems=("S080",))

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        return {"encoding": param(axis("iteration", self.times), axis("width", width), init="zeros")}

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return EncodedRounds(layers, self.times, width)


@dataclass(frozen=True)
class HyperLoop(Recursion):
    """Hyperloop Transformers (Zeitoun et al., 2026): hyper-connections around every pass of the looped middle.

    Pass t reads a sum of `rate` streams weighed by sigmoids of all of them after RMSNorm (no gain), adds a vector of its
    own to what the layers give, and writes it to every stream with twice a sigmoid, while each keeps a share of itself by
    a third sigmoid: the diagonal form. The streams start as copies and leave as their mean.
    """

    times: Any = 3
    rate: Any = 4
    source: ClassVar[Source] = Source("Hyperloop Transformers", 2026, systems=("S011",))

    def check(self, where: str) -> None:
        super().check(where)
        if not isinstance(self.rate, int) or self.rate < 2:
            raise ValueError(f"rate is 2 or more at {where}: got {self.rate!r}; use Loop() for one stream")

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        t, n, d = axis("iteration", self.times), axis("streams", self.rate), axis("width", width)
        rows = axis("ways", 3) * n
        return {"weigh": param(t, rows, n * d, init="last"), "offset": param(t, rows, init="zeros"),
                "place": param(t, d, init="zeros")}

    def macs_per_token(self, width: int) -> float:
        return float(self.times * 3 * self.rate * self.rate * width)

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return HyperRounds(layers, self.times, width, self.rate)


@dataclass(frozen=True)
class OwnNorms(Recursion):
    """WideNet (Xue et al., 2021): blocks are shared by all passes, their norms are not.

    In every pass the gain of a norm is multiplied by one of the pass, and its bias, where it has one, gets one added, which
    is any gain and bias at all. With `channel=MoE(...)` the experts and the router are shared, and a token is routed anew in
    every pass; the paper's norms are `LayerNorm`. The layers are blocks.
    """

    times: Any = 2
    source: ClassVar[Source] = Source("Go Wider Instead of Deeper", 2021, systems=("S263",))

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        dims = axis("iteration", self.times), axis("layers", layers), axis("roles", 2), axis("width", width)
        return {"gain": param(*dims, share="own", init="ones"), "shift": param(*dims, share="own", init="zeros")}

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return NormedRounds(layers, self.times, width)


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
    source: ClassVar[Source] = Source("Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level "
                                      "Computation", 2025, systems=("S020",))

    @property
    def times(self) -> int:                                                           # type: ignore[override]
        return len(self.capacity)

    def check(self, where: str) -> None:
        shares = self.capacity
        if not isinstance(shares, tuple) or not shares or any(not 0 < c <= 1 for c in shares):
            raise ValueError(f"capacity is one share of the tokens, above 0 and up to 1, per pass at {where}: got {shares!r}; "
                             "use (1.0, 0.5)")
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

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
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

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return TokenRounds(layers, width, self.times)


@dataclass(frozen=True)
class InnerThinking(Recursion):
    """Inner Thinking Transformer (Chen et al., 2025): all tokens take the first step, the highest-scored ones every later.

    What step t adds to the stream is multiplied by a learned vector, its step encoding, which starts as ones, and after
    the first step by the sigmoid of the token's score; the steps accumulate. capacity: the share of tokens of the later
    steps. The choice looks at the whole sequence: it is not causal and does not stream.
    """

    times: Any = 3
    capacity: Any = 0.5
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
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

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
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
        return max(1, round(self.ratio * width))

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
            found += [(tokens // groups + 1, 1.0)] * (tokens % groups) + [(tokens // groups, 1.0)] * (groups - tokens % groups)
        return tuple(entry for entry in found if entry[0])

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return SlicedRounds(layers, self.groups, width, self.hidden(width))


@dataclass(frozen=True)
class VisitOrder(Recursion):
    """Layers in any order: repeated, left out, exchanged, or side by side.

    reuse: how often each layer runs before the next, layers beyond it once: intra-layer recurrence (Nguyen & Lin, 2025).
    order: instead the layers by index, in the order they run, `(0, 2, 1)` or `(0, 0, 0)`; one left out has weights and does
    not run. side_by_side: all of them on the same input, their outputs averaged. times: all of that so many times over.
    Transformer Layers as Painters (Sun et al., 2024) rewrites trained networks so: the weights of layers do not depend on
    the order, so one supernet or one trained model serves all of them.
    """

    reuse: Any = ()
    order: Any = None
    side_by_side: Any = False
    times: Any = 1
    source: ClassVar[Source] = Source("Intra-Layer Recurrence in Transformers for Language Modeling", 2025,
                                      systems=("S141", "S189"))

    def check(self, where: str) -> None:
        super().check(where)
        if any(not isinstance(r, int) or r < 1 for r in self.reuse):
            raise ValueError(f"a layer runs at least once at {where}: got reuse {self.reuse}; leave it out by order=...")
        if self.order is not None and (self.reuse or not self.order or any(i < 0 for i in self.order)):
            raise ValueError(f"order is a tuple of layers by index, without reuse, at {where}: got order {self.order} and "
                             f"reuse {self.reuse}")

    @property
    def is_plain(self) -> bool:                                                       # type: ignore[override]
        if self.side_by_side or self.times != 1:
            return False
        return all(r == 1 for r in self.reuse) if self.order is None else False

    def on(self, indices: list[int]) -> VisitOrder:
        """With an entry for every layer that is there, none for others."""
        places = {index: place for place, index in enumerate(indices)}
        if self.order is None:
            reuse = tuple(self.reuse[i] if i < len(self.reuse) else 1 for i in indices)
            while reuse and reuse[-1] == 1:
                reuse = reuse[:-1]
            return VisitOrder(reuse, None, self.side_by_side and len(indices) > 1, self.times)
        order: Any = tuple(places[i] for i in self.order if i in places)
        order = None if order == tuple(range(len(indices))) else order
        return VisitOrder((), order, self.side_by_side, self.times)

    def rounds(self, layers: int) -> tuple[tuple[int, ...], ...]:
        """The layers of every round."""
        reuse = (*self.reuse, *[1] * layers)[:layers]
        order = [i for i in range(layers) for _ in range(reuse[i])] if self.order is None else self.order
        once = (tuple(order),) if self.side_by_side else tuple((i,) for i in order)
        return once * self.times                                                      # type: ignore[no-any-return]

    def passes(self, index: int, length: Length) -> Passes:
        visits = sum(visited.count(index) for visited in self.rounds(max(index + 1, len(self.reuse))))
        return ((length, 1.0),) * visits

    def build(self, layers: list[nn.Module], width: int) -> nn.Module:
        return Visits(layers, self.rounds(len(layers)))


def _check_times(times: Any, where: str) -> None:
    if not isinstance(times, int) or times < 1:
        raise ValueError(f"times must be at least 1 at {where}: got {times!r}; use Once() for no recursion")
