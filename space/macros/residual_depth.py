"""Residual topologies that are numbers from the depth: the blocks of a stack, with a placement and scales put in.

The depth counts the blocks of the stack; other parts stay as they are and do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..operator import Source
from ..operators.add import Add
from ..plan import Block
from .residual import Residual

__all__ = ["DeepNorm", "DeepScale", "DepthScale", "NormScaling"]


def _each(items: list[Any], change: Callable[[Block, int, int], Block]) -> list[Any]:
    """Every block as `change(block, number, depth)` makes it, numbers from 1; placeholders stay."""
    depth = sum(isinstance(item, Block) for item in items)
    made: list[Any] = []
    for item in items:
        if isinstance(item, Block):
            number = sum(isinstance(other, Block) for other in items[:len(made)]) + 1
            item = change(item, number, depth)
        made.append(item)
    return made


@dataclass(frozen=True)
class NormScaling(Residual):
    """LayerNorm Scaling of The Curse of Depth in Large Language Models (Sun et al., 2025): what the sublayers of block l
    read, after the norm, is divided by sqrt(l)."""

    proof: ClassVar[str] = "tests/space/test_residuals.py -k norm_scaling"
    source: ClassVar[Source] = Source("The Curse of Depth in Large Language Models", 2025, systems=("S076",))

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        return _each(items, lambda block, number, _: replace(block, input_scale=1 / math.sqrt(number)))


@dataclass(frozen=True)
class DeepNorm(Residual):
    """DeepNet (Wang et al., 2022): the norm stands after the sum, and the stream counts alpha = (2 N)^(1/4) times in it.

    `starts.deepnorm` gives the starting values that belong to it: feed-forward layers, values and attention outputs smaller
    by beta = (8 N)^(-1/4). That is for an encoder or a decoder alone. encoder_layers: of the network's encoder, which makes
    this the decoder's part, alpha = (3 M)^(1/4); decoder_layers: of its decoder, alpha = 0.81 (N^4 M)^(1/16).
    """

    encoder_layers: Any = None
    decoder_layers: Any = None
    proof: ClassVar[str] = "tests/space/test_residuals.py -k deep_norm"
    source: ClassVar[Source] = Source("DeepNet: Scaling Transformers to 1,000 Layers", 2022, systems=("S177",))

    def check(self, where: str) -> None:
        if self.encoder_layers is not None and self.decoder_layers is not None:
            raise ValueError(f"a stack is the encoder or the decoder at {where}: got encoder_layers and decoder_layers; give "
                             "the number of layers of the other one")

    def alpha(self, depth: int) -> float:
        """How often the stream counts."""
        if self.encoder_layers is not None:
            return float((3 * depth) ** 0.25)
        if self.decoder_layers is not None:
            return float(0.81 * (depth ** 4 * self.decoder_layers) ** (1 / 16))
        return float((2 * depth) ** 0.25)

    def beta(self, depth: int) -> float:
        """The gain of the starting values."""
        if self.encoder_layers is not None:
            return float((12 * depth) ** -0.25)
        if self.decoder_layers is not None:
            return float(0.87 * (depth ** 4 * self.decoder_layers) ** (-1 / 16))
        return float((8 * depth) ** -0.25)

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        return _each(items, lambda block, _, depth: replace(block, placement="post", join=Add(skip=self.alpha(depth))))


@dataclass(frozen=True)
class DeepScale(Residual):
    """DeepScaleLM (Kedia et al., 2024): `lambda x + beta f(x)` with beta^2 = k / N and lambda^2 = 1 - beta^2, N the blocks.

    `starts.deepscale` gives the starting values that belong to it, with which every sublayer gives a variance of 1, so that
    the stream keeps its own.
    """

    k: Any = 2.0
    proof: ClassVar[str] = "tests/space/test_residuals.py -k deep_scale"
    source: ClassVar[Source] = Source("Transformers Get Stable: An End-to-End Signal Propagation Theory for Language Models",
                                      2024, systems=("S158",))

    def check(self, where: str) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, (int, float)) or not 0 < self.k < math.inf:
            raise ValueError(f"k is a positive number at {where}: got {self.k!r}; use 2.0")

    def scales(self, depth: int) -> tuple[float, float]:
        """(lambda, beta); a stack of fewer than 2 k blocks has half of each square."""
        square = min(self.k / max(depth, 1), 0.5)
        return math.sqrt(1 - square), math.sqrt(square)

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        def scaled(block: Block, number: int, depth: int) -> Block:
            skip, branch = self.scales(depth)
            return replace(block, join=Add(skip=skip, branch=branch))

        return _each(items, scaled)


@dataclass(frozen=True)
class DepthScale(Residual):
    """Depth-muP (Tensor Programs VI, Yang et al., 2023): `x + a / sqrt(L) f(x)`, L the sublayers, each a block of its own.

    The rates that belong to it come from `mup(deep, base=shallow)`: for Adam, everything inside branches learns at
    1 / sqrt(L) of what it does in the base, and what follows the width follows muP, so that a rate found shallow and narrow
    serves a deep and wide network. In a plain stream `mup` folds the same multiplier into weights and rates instead; the
    two train alike. The paper's further finding, `MLP(activation="abs")`, makes features the most diverse. Blocks of two
    matrices, as `MLP`, are deeper than the one that the paper finds right, and the theory is limited for them.
    """

    a: Any = 1.0
    proof: ClassVar[str] = "tests/space/test_mup.py -k depth"
    source: ClassVar[Source] = Source("Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks", 2023,
                                      systems=("S131",))

    def check(self, where: str) -> None:
        if isinstance(self.a, bool) or not isinstance(self.a, (int, float)) or not math.isfinite(self.a):
            raise ValueError(f"a is a number at {where}: got {self.a!r}; use 1.0")

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        sublayers = sum(len(item.sublayers()) for item in items if isinstance(item, Block))
        return _each(items, lambda block, _, __: replace(block, join=Add(branch=self.a / math.sqrt(max(sublayers, 1)))))
