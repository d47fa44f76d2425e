"""Neural memories: Titans and Atlas.

Both are one module, `LearningMemory`, with a window of one token and keys as they are, or with neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...registry import unknown
from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole
from .gated_delta import GatedDeltaNet
from .learning_memory import LearningMemory, memory_layers
from .short_conv import tap_init

__all__ = ["Atlas", "NeuralMemory"]

INNER = ("gd", "momentum", "muon")


class _Memory(Operator, abstract=True):
    """What both have in common."""

    heads: Any
    head_dim: Any
    depth: Any
    expand: Any
    chunk: Any
    conv: Any
    inner: Any
    window: Any = 1
    degree: Any = 1
    rate: Any

    def sizes(self, width: int) -> tuple[int, int, int]:
        """Key and value size of a head, and hidden units of its memory."""
        head_dim = int(self.head_dim or width // self.heads)
        return head_dim, head_dim, head_dim * self.expand

    def largest_step(self) -> float:
        """rate, or a default that is small for orthogonal steps, since these do not shrink with the error."""
        return float(self.rate or (0.02 if self.inner == "muon" else 1 / self.chunk))

    def check(self, width: int, where: str) -> None:
        for name in ("heads", "depth", "expand", "chunk", "window"):
            require_whole(name, getattr(self, name), where)
        if self.head_dim is None:
            require_divisor("heads", self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)
        require_whole("conv", self.conv or 0, where, low=0, instead="use 4, or None for no convolution")
        if self.inner not in INNER:
            raise ValueError(f"{unknown('inner', self.inner, INNER)} (at {where})")
        if self.degree not in (1, 2):
            raise ValueError(f"degree must be 1 or 2 at {where}: got {self.degree!r}")
        if self.rate is not None and not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"rate must be a finite number above 0 at {where}: got {self.rate!r}; use None for the default")

    def axes(self, width: int) -> dict[str, Param]:
        key_dim, value_dim, hidden = self.sizes(width)
        d, h, k, v = axis("width", width), axis("heads", self.heads), axis("key_dim", key_dim), axis("value_dim", value_dim)
        more = h * axis("momentum", int(self.inner != "gd")) + h * axis("window_weight", int(self.window > 1))
        mixed = h * k + h * k + h * v
        declared = {"input.weight": param(mixed + h * v + h + h + more, d), "out.weight": param(d, h * v),
                    "norm.weight": param(v, share="own", init="ones"),
                    "keep_bias": param(h, share="own", init=Init("constant", low=4.0)),
                    "step_bias": param(h, share="own", init="zeros")}
        if self.inner != "gd":
            declared["momentum_bias"] = param(h, share="own", init="zeros")
        if self.conv:
            declared["taps"] = param(mixed, axis("taps", self.conv, "trailing"), init=tap_init(self.conv))
        square = axis("squares", self.degree - 1)
        features = axis("one", self.degree - 1) + k + square * k * axis("second_key_dim", key_dim)
        inner = axis("hidden", hidden)
        dims: dict[str, tuple[Any, Any]] = {"only": (v, features), "first": (inner, features), "last": (v, inner)}
        for name, _, _ in self.layers(width):
            outputs, inputs = dims.get(name, (inner, inner))
            declared[f"memory.{name}"] = param(h, outputs, inputs, init="last" if self.depth > 1 else "zeros")
        return declared

    def build(self, width: int) -> nn.Module:
        key_dim, value_dim, hidden = self.sizes(width)
        return LearningMemory(self.heads, key_dim, value_dim, width, hidden, self.depth, self.degree, self.conv or 0,
                              self.window, self.chunk, self.inner, self.largest_step())

    def layers(self, width: int) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of every layer of a head's memory."""
        key_dim, value_dim, hidden = self.sizes(width)
        features = key_dim if self.degree == 1 else 1 + key_dim + key_dim**2
        return memory_layers(features, hidden, value_dim, self.depth)

    def as_delta_rule(self) -> GatedDeltaNet | None:
        """The operator whose kernel does the same, where there is one."""
        if self.depth == self.chunk == self.window == self.degree == 1 and self.inner == "gd":
            return GatedDeltaNet(self.heads, self.head_dim, 1, self.conv)
        return None

    def chunk_macs(self, width: int, size: int, before: int) -> float:
        """One chunk of `size` tokens with `before` of the window: errors, coefficients, reading and, when full, writing."""
        tokens, total, has_momentum = size + before, 0.0, self.inner != "gd"
        for number, (_, i, o) in enumerate(self.layers(width)):
            total += tokens * i * o * (1 if number == 0 else 2)
            if self.inner == "muon":
                small, large = sorted((i, o))
                total += size * (tokens * i * o + 5 * (2 * small * small * large + small**3) + size * i * o + i * o)
            else:
                total += size * ((1 + has_momentum) * i * o + tokens * (i + o))
                total += (size == self.chunk) * (1 + has_momentum) * tokens * i * o
        total += has_momentum * size * size * tokens
        if self.inner != "muon":
            total += size * size * (tokens + has_momentum)
        return float(self.heads * total)

    def _token_macs(self, width: int) -> int:
        key_dim, value_dim, _ = self.sizes(width)
        return int(self.matrix_numel(width) + self.heads * (2 * key_dim + value_dim) * (self.conv or 0))

    def macs(self, width: int, length: int) -> float:
        if (same := self.as_delta_rule()) is not None:
            own = same.matrix_numel(width)
            return float(same.macs(width, length) + length * (self.matrix_numel(width) - own))
        full, rest = divmod(length, self.chunk)
        total = sum(self.chunk_macs(width, self.chunk, min(n * self.chunk, self.window - 1)) for n in range(full))
        if rest:
            total += self.chunk_macs(width, rest, min(full * self.chunk, self.window - 1))
        return float(length * self._token_macs(width) + total)

    def decode_macs(self, width: int, length: int) -> float:
        """Projections, and the chunk so far once more; three passes over the memory for the delta rule."""
        if (same := self.as_delta_rule()) is not None:
            return same.decode_macs(width, length) + self.matrix_numel(width) - same.matrix_numel(width)
        start = length - length % self.chunk
        return float(self._token_macs(width) + self.chunk_macs(width, length % self.chunk + 1, min(start, self.window - 1)))

    def state_numel(self, width: int, length: int) -> int:
        key_dim, value_dim, _ = self.sizes(width)
        memory = self.heads * sum(i * o for _, i, o in self.layers(width)) * (1 if self.inner == "gd" else 2)
        past = max((self.conv or 1) - 1, 0) * self.heads * (2 * key_dim + value_dim)
        if self.as_delta_rule() is not None:
            return int(memory + past)
        pending = length % self.chunk
        tokens = pending + min(length - pending, self.window - 1)
        return int(memory + past + tokens * self.heads * (2 * key_dim + value_dim + 4))


@dataclass(frozen=True)
class NeuralMemory(_Memory):
    """The long-term memory of Titans: Learning to Memorize at Test Time (Behrouz, Zhong and Mirrokni, 2025).

    heads, head_dim: memories, each a perceptron from head_dim to head_dim numbers; head_dim defaults to width / heads.
    depth, expand: its layers, and its hidden units over head_dim. chunk: tokens whose gradients are taken at one state; 1 is
    the recurrence itself. inner: "momentum" as in the paper, or "gd" without it. conv: taps before queries, keys and
    values; None for none. rate: largest step; None for 1 / chunk, so that a key repeated all through a chunk is not
    overshot. The start of the memory is learned; a memory of one layer starts at zero.

    The mixer is the paper's LMM. Its ways to work with attention are `MemoryAsContext` (MAC), `MemoryAsGate` (MAG) and, as
    layers behind `PersistentTokens`, MAL.
    """

    heads: Any = 2
    head_dim: Any = None
    depth: Any = 2
    expand: Any = 2
    chunk: Any = 16
    conv: Any = 4
    inner: Any = "momentum"
    rate: Any = None
    window: ClassVar[Any] = 1                                                         # type: ignore[misc]
    degree: ClassVar[Any] = 1                                                         # type: ignore[misc]
    source: ClassVar[Source] = Source("Titans: Learning to Memorize at Test Time", 2025, options=("S394",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        if self.inner == "muon":
            raise ValueError(f"inner must be 'gd' or 'momentum' at {where}: got 'muon'; use Atlas(window=1, degree=1)")


@dataclass(frozen=True)
class Atlas(_Memory):
    """ATLAS: Learning to Optimally Memorize the Context at Test Time (Behrouz et al., 2025).

    A neural memory as in `NeuralMemory` whose gradient sums over the last `window` tokens, each with a weight of its own
    (the Omega rule), whose keys and queries are polynomial features up to `degree`, and whose step is orthogonalised by
    Newton-Schulz (inner="muon"); "momentum" or "gd" give OmegaNet. window=1 and degree=1 are Titans; with one layer, chunks
    of one token and inner="gd" the gated delta rule. rate: None for 1 / chunk, with Muon 0.02: its steps do not shrink with
    the error, so that large ones make the memory wander. Muon makes the weights of every token of a chunk: prefer small
    chunks. Features of degree two are 1 + head_dim + head_dim^2, each an input of every token's own matrix, hence small
    heads; head_dim=None is width / heads. The paper's other models, which replace the memory by attention, are not here.
    """

    heads: Any = 2
    head_dim: Any = 8
    depth: Any = 2
    expand: Any = 2
    chunk: Any = 16
    conv: Any = 4
    inner: Any = "muon"
    rate: Any = None
    window: Any = 8
    degree: Any = 2
    fixed: ClassVar[Mapping[str, str]] = {"key_dim": "pairs of its entries are features",
                                          "second_key_dim": "pairs of entries are features"}
    source: ClassVar[Source] = Source("ATLAS: Learning to Optimally Memorize the Context at Test Time", 2025,
                                      systems=("S033",))
