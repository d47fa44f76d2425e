"""What the cache of attention keeps once it is full: policies for `Attention(cache=...)`.

The module is in `caching_attention`.

A policy changes no weights: a network trained without one is decoded with one after `dataclasses.replace`, and a choice
between policies shares all weights in a supernet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..operator import Source
from .checks import is_whole, require_positive, require_whole

__all__ = ["CachePolicy", "HeavyHitters", "Keyformer", "RecentTokens"]


@dataclass(frozen=True)
class CachePolicy:
    """A cache of at most `budget` tokens for each key/value head.

    prompt: tokens that are read in full, as many as the cache must then hold, before it is cut down to `budget`; from there
    on one token is dropped for each that comes. A token reads what is kept and itself, whether it comes alone or with
    others, so that a whole sequence gives what decoding gives, one token after the other once the cache is full: choose
    policies for decoding and for judging what they cost, and train without one. Keys keep the positions they had.

    Up to max(budget, prompt) tokens, this is full attention to the last bit.
    """

    budget: Any = 256
    prompt: Any = 0
    proof: ClassVar[str] = "tests/space/operators/test_cache_policies.py"
    score: ClassVar[str | None] = None          # "weights", of attention, or "noisy", those of scores with Gumbel noise

    @property
    def limit(self) -> int:
        """Tokens from which on some are dropped."""
        return int(max(self.budget, self.prompt))

    @property
    def kept_first(self) -> int:
        """How many of the first tokens are never dropped."""
        return 0

    @property
    def kept_last(self) -> int:
        """How many of the newest tokens are never dropped."""
        raise TypeError(f"{type(self).__name__} must say in kept_last how many of the newest tokens stay")

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""
        require_whole("budget", self.budget, where)
        require_whole("prompt", self.prompt, where, low=0, instead="use 0 to drop tokens as soon as the budget is full")
        if not 0 <= self.kept_last <= self.budget - self.kept_first:
            raise ValueError(f"what always stays must fit into budget at {where}: got {self}; use a larger budget")

    def noise(self) -> tuple[float, float, int, int] | None:
        """Temperature at first and at last, tokens until then, and seed; None without noise."""
        return None

    def kept(self, length: int) -> int:
        """Tokens in the cache after `length` of them."""
        return length if length < self.limit else min(length, int(self.budget))

    def pairs(self, length: int) -> int:
        """Pairs of a token and one that it reads, itself included, in a sequence."""
        whole = min(length, self.limit)
        return int(whole * (whole + 1) // 2 + (length - whole) * (self.budget + 1))

    def reads(self, length: int) -> int:
        """Tokens that the one after `length` reads, itself included."""
        return self.kept(length) + 1


@dataclass(frozen=True)
class RecentTokens(CachePolicy):
    """The newest tokens, and the first `sinks` of the sequence (StreamingLLM, Xiao et al., 2023). The paper counts positions
    within the cache; here tokens stay where they were."""

    sinks: Any = 4
    source: ClassVar[Source] = Source("Efficient Streaming Language Models with Attention Sinks", 2023)

    @property
    def kept_first(self) -> int:
        return int(self.sinks)

    @property
    def kept_last(self) -> int:
        return int(self.budget - self.sinks)

    def check(self, where: str) -> None:
        require_whole("sinks", self.sinks, where, low=0)
        super().check(where)


@dataclass(frozen=True)
class HeavyHitters(CachePolicy):
    """The newest `recent` tokens, by default half of the budget, and of the others those with the largest sum of the
    attention weights they have had (H2O, Zhang et al., 2023), head by head."""

    recent: Any = None
    score: ClassVar[str | None] = "weights"
    source: ClassVar[Source] = Source("H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
                                      2023)

    @property
    def kept_last(self) -> int:
        return int(self.budget // 2 if self.recent is None else self.recent)

    def check(self, where: str) -> None:
        if self.recent is not None:
            require_whole("recent", self.recent, where, low=0, instead="use None for half of the budget")
        super().check(where)


@dataclass(frozen=True)
class Keyformer(CachePolicy):
    """The newest `recent` tokens, by default three tenths of the budget, and of the others those with the highest score
    `f_i = sum over queries t of softmax_i((x_t + zeta_t) / tau_t)` (Keyformer, Adnan et al., 2024), head by head.

    x_t: scores of query t with what it reads; zeta_t: Gumbel noise, new for every query, and the same in every run: a
    function of `seed`, head, query and key. tau: `start` while the cache is filled, then rising by equal steps to `end`
    over the next `horizon` tokens. A key that serves several queries adds up their scores.
    """

    recent: Any = None
    start: float = 1.0
    end: float = 2.0
    horizon: Any = 256
    seed: Any = 0
    score: ClassVar[str | None] = "noisy"
    source: ClassVar[Source] = Source("Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative "
                                      "Inference", 2024, systems=("S421",))

    @property
    def kept_last(self) -> int:
        return int(3 * self.budget // 10 if self.recent is None else self.recent)

    def check(self, where: str) -> None:
        if self.recent is not None:
            require_whole("recent", self.recent, where, low=0, instead="use None for three tenths of the budget")
        require_positive("start", self.start, where, "use 1.0")
        require_positive("end", self.end, where, "use 2.0")
        require_whole("horizon", self.horizon, where, instead="use the number of tokens you generate")
        if not is_whole(self.seed, 0) or self.seed >= 2**31:
            raise ValueError(f"seed must be a whole number from 0 to 2^31 - 1 at {where}: got {self.seed!r}")
        super().check(where)

    def noise(self) -> tuple[float, float, int, int] | None:
        return float(self.start), float(self.end), int(self.horizon), int(self.seed)
