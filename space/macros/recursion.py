"""How the layers of `Looped` run more than once, beside `Loop`. The modules are in `recursion_layers`.

Those that choose or slice tokens are in `token_recursion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from .recursion_layers import EncodedRounds, HyperRounds, NormedRounds, Visits

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HyperLoop", "IterationEncoding", "OwnNorms", "Passes", "Recursion", "VisitOrder"]

Passes = tuple[tuple[Length, float], ...]          # (length, share of next tokens) of every pass


class Recursion:
    """A way to run layers more than once with one set of weights.

    causal, streaming: whether it looks at nothing to the right itself, and decodes token by token.
    """

    source: ClassVar[Source]
    proof: ClassVar[str] = "tests/space/test_depth.py"
    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    lora_rank: ClassVar[int] = 0
    is_plain: bool = False
    times: Any

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""
        if not isinstance(self.times, int) or self.times < 1:
            raise ValueError(f"times must be at least 1 at {where}: got {self.times!r}; use Once() for no recursion")

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

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        """The module that runs these layers; ahead: whether one of them is not causal."""
        raise TypeError(f"{type(self).__name__} must define build(layers, width)")


@dataclass(frozen=True)
class IterationEncoding(Recursion):
    """FraiLT (Tabak, 2024): a learned vector of the pass is added to what enters it; zero at the start."""

    times: Any = 2
    proof: ClassVar[str] = "tests/space/test_depth.py -k IterationEncoding"
    source: ClassVar[Source] = Source("Freely Long-Thinking Transformer (FraiLT)", 2024, systems=("S080",))

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        return {"encoding": param(axis("iteration", self.times), axis("width", width), init="zeros")}

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
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
    proof: ClassVar[str] = "tests/space/test_depth.py -k HyperLoop"
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

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return HyperRounds(layers, self.times, width, self.rate)


@dataclass(frozen=True)
class OwnNorms(Recursion):
    """WideNet (Xue et al., 2021): blocks are shared by all passes, their norms are not.

    In every pass the gain of a norm is multiplied by one of the pass, and its bias, where it has one, gets one added, which
    is any gain and bias at all. With `channel=MoE(...)` the experts and the router are shared, and a token is routed anew in
    every pass; the paper's norms are `LayerNorm`. Norms deeper inside than those of the blocks stay shared.
    """

    times: Any = 2
    proof: ClassVar[str] = "tests/space/test_depth.py -k OwnNorms"
    source: ClassVar[Source] = Source("Go Wider Instead of Deeper", 2021, systems=("S263",))

    def axes(self, width: int, layers: int) -> dict[str, Param]:
        dims = axis("iteration", self.times), axis("layers", layers), axis("roles", 2), axis("width", width)
        return {"gain": param(*dims, share="own", init="ones"), "shift": param(*dims, share="own", init="zeros")}

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return NormedRounds(layers, self.times, width)


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
    proof: ClassVar[str] = "tests/space/test_depth.py -k VisitOrder"
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

    def build(self, layers: list[nn.Module], width: int, ahead: bool = False) -> nn.Module:
        return Visits(layers, self.rounds(len(layers)))
